// Runs Perfetto's own trace processor (WebAssembly) outside of a browser: requests come on stdin and replies go to
// stdout, both as protobuf messages TraceProcessorRpcStream.  Its bundle is made for a web worker, so this plays one.
"use strict";
const fs = require("fs"), path = require("path"), real = process;
const directory = real.argv[2];
const read = (url) => new Uint8Array(fs.readFileSync(path.join(directory, path.basename(url))));

console.log = console.warn = (...words) => real.stderr.write(words.join(" ") + "\n");
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = function () {};
globalThis.importScripts = () => {};
globalThis.location = { href: "http://localhost/engine_bundle.js" };
globalThis.XMLHttpRequest = class {
  open(method, url) { this.url = url; }
  send() { this.response = read(this.url).buffer; }
};
Object.defineProperty(globalThis, "process", { value: undefined });  // or it takes this for Node, and refuses

(0, eval)(fs.readFileSync(path.join(directory, "engine_bundle.js"), "utf8"));
const port = { postMessage(bytes) { for (let at = 0; at < bytes.length;) { at += fs.writeSync(1, bytes, at); } } };
self.onmessage({ data: port });
const requests = new Uint8Array(fs.readFileSync(0));
// The module is compiled at once, and ready when the event loop has turned.
setTimeout(() => port.onmessage({ data: requests }), 100);

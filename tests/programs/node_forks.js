'use strict';
// Starts children in each way that Node has, and says before each from where: tests/kernel/test_node_frames.py compares.
// The protocol is that of truth.h.  A line is told by the comment at its end, since asking V8 for one changes what V8 keeps.
const { spawn, exec, execFile, execSync, spawnSync, fork } = require('child_process');
const { Worker: Thread, isMainThread } = require('worker_threads');
const fs = require('fs');

const lines = fs.readFileSync(__filename, 'utf8').split('\n');
const say = (what) => fs.writeSync(1, JSON.stringify(what) + '\n');
const listen = () => fs.readSync(0, Buffer.alloc(64));
const ended = (child) => new Promise((resolve) => child.on('exit', resolve));

function announce(way, ...functions) {
  say({ way, line: lines.findIndex((line) => line.endsWith(`// ${way}`)) + 1, functions: functions.join(' ') });
}

function work() {
  announce('worker', 'work', '(module)');
  spawnSync('/bin/true'); // worker
}

if (process.argv[2] === 'child') process.exit(0);
if (!isMainThread) {
  work();
  return;
}
say({ pid: process.pid });
listen();

function outer(how) {
  return how();
}

class Worker {
  start() {
    announce('method', 'start', '(module)');
    spawnSync('/bin/true'); // method
  }
}

function often(work) {
  if (work) return execSync('true', { shell: '/bin/true' }); // compiled
  return 1 + 1;
}

announce('execSync', '(module)');
execSync('exit', { shell: '/bin/true' }); // execSync
announce('nested', '(anonymous)', 'outer', '(module)');
outer(() => spawnSync('/bin/true')); // nested
new Worker().start();

async function main() {
  announce('spawn', 'main', '(module)');
  await ended(spawn('/bin/true')); // spawn
  announce('after await', 'main');
  await ended(execFile('/bin/true')); // after await
  announce('in forEach', '(anonymous)', 'main');
  const children = [];
  [1].forEach(() => children.push(exec('exit', { shell: '/bin/true' }))); // in forEach
  await ended(children[0]);
  announce('fork', 'main');
  await ended(fork(__filename, ['child'])); // fork
  await ended(new Thread(__filename));
  for (let n = 0; n < 200000; n++) often(n < 0);
  announce('compiled', 'often', 'main');
  often(true);
  say({ ready: true });
  listen();
}
main();

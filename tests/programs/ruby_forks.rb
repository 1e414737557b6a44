# A Ruby program that forks in every way that Ruby has, and says for each child which frames it came from.
#
#   ruby ruby_forks.rb [--wait] [DIRECTORY]
#
# It talks the protocol of truth.h; between hello and ready it prints one line a child:
# {"way": ..., "pid": ..., "inner": 0, "frames": [[path, label, base label, line], ...]}, innermost first, as
# caller_locations said it on the line that forks (without the innermost ones, as many as "inner" says): a file's real
# path where it has one.  Ruby 2.6 and later, also one without extensions (miniruby).  DIRECTORY: empty, for files with odd names that it writes.  All children are waited for.

TRUE = "/bin/true".freeze
SAID = Queue.new
PROGRESS = $stdout.dup
CHILDREN = []

def json(value)
  case value
  when Hash then "{" + value.map { |k, v| json(k.to_s) + ": " + json(v) }.join(", ") + "}"
  when Array then "[" + value.map { |v| json(v) }.join(", ") + "]"
  when String then '"' + value.gsub(/["\\\x00-\x1f]/) { |c| format('\u%04x', c.ord) } + '"'
  when nil then "null"
  else value.to_s
  end
end

def say(**line)
  PROGRESS.syswrite(json(line) + "\n")
end

def frames(locations)
  locations.map { |l| [l.absolute_path || l.path, l.label, l.base_label, l.lineno] }
end

# The caller forked this child on the line that these locations are of.  inner: frames in Ruby that they leave out.
def note(way, pid, locations, inner = 0)
  SAID << { way: way, pid: pid, inner: inner, frames: frames(locations) }
end

def wait_for(pid)
  Process.wait(pid)
  pid
rescue Errno::ECHILD # somebody did
  pid
end

def fork_once
  pid = fork { exit!(0) }; note("fork", pid, caller_locations(0))
  wait_for(pid)
end

# --- the ways -------------------------------------------------------------------------------------------------

module Ways
  def self.fork_without_a_block
    pid = fork || exit!(0); note("fork without a block", pid, caller_locations(0))
    wait_for(pid)
  end

  def self.process_fork
    pid = Process.fork { exit!(0) }; note("Process.fork", pid, caller_locations(0))
    wait_for(pid)
  end

  def self.spawned
    pid = Process.spawn(TRUE); note("spawn", pid, caller_locations(0))
    wait_for(pid)
  end

  def self.kernel_spawn
    pid = Kernel.spawn(TRUE, [:out, :err] => "/dev/null"); note("Kernel.spawn", pid, caller_locations(0))
    wait_for(pid)
  end

  def self.by_system
    system(TRUE); note("system", $?.pid, caller_locations(0))
  end

  def self.by_shell
    system("exit 0;"); note("system with a shell", $?.pid, caller_locations(0))
  end

  def self.backtick
    `true`; note("backtick", $?.pid, caller_locations(0))
  end

  def self.popen
    io = IO.popen(["true"]); pid = io.pid; note("popen", pid, caller_locations(0))
    io.close
  end

  def self.popen_fork
    io = IO.popen("-") || exit!(0); note("popen -", io.pid, caller_locations(0))
    io.close
  end

  def self.open3
    require "open3"
    # of Open3's two methods, the inner one has left the line that spawns
    Open3.popen2(TRUE) { |_, _, thread| note("open3", thread.pid, caller_locations(0).drop(2), 1); thread.join }
  rescue LoadError
    nil
  end
end

# --- the code that forks ----------------------------------------------------------------------------------------

class Outer
  def method
    [1].map { fork_once }
  end

  def self.singleton
    fork_once
  end

  class << self
    def in_singleton_class
      1.times { [2].each { |_| fork_once } }
    end
  end

  class Inner
    def initialize
      fork_once
    end

    define_method(:defined) { fork_once }

    def method_missing(name, *arguments)
      name == :nothing ? fork_once : super
    end

    def respond_to_missing?(name, all = false)
      name == :nothing || super
    end

    protected def protected_one
      fork_once
    end

    def call_protected(other)
      other.protected_one
    end

    def to_s
      fork_once.to_s
    end

    def <=>(_other)
      fork_once && 0
    end

    def each
      yield 1
      yield fork_once
    end
    include Enumerable
  end
end

module Mixin
  def mixed
    fork_once
  end
end

module Prepended
  def method
    super
    fork_once
  end
end

class Mixed < Outer
  include Mixin
  prepend Prepended
  extend Mixin
end

module Refined
  refine String do
    def refined
      fork_once
    end
  end
end
using Refined

def rescued
  raise "x"
rescue StandardError
  fork_once
else
  nil
ensure
  fork_once
end

def ensured
  return 1
ensure
  fork_once
end

def multiline(*_, **_)
end

def on_many_lines
  multiline(
    fork_once,
    [
      1,
      fork_once
    ],
    key:
      fork_once
  )
end

def with_default(pid = fork_once)
  pid
end

def with_a_name_of_more_than_a_hundred_and_twenty_eight_bytes_so_that_it_is_not_sent_whole_by_the_program_in_the_kernel_whatever_it_does
  [1].each { fork_once }
end

def größe
  fork_once
end

def recurse(count)
  count.zero? ? fork_once : recurse(count - 1)
end

def blocks(count, &block)
  count.zero? ? block.call : [1].each { blocks(count - 1, &block) }
end

def all_kinds_of_code
  fork_once
  Outer.new.method
  Outer.singleton
  Outer.in_singleton_class
  inner = Outer::Inner.new
  inner.defined
  inner.nothing
  inner.call_protected(Outer::Inner.new)
  "#{inner}"
  inner.max
  inner.each_slice(1).to_a
  inner.lazy.map { |x| fork_once && x }.first(1)
  [inner, inner].sort
  Mixed.new.method
  Mixed.new.mixed
  Mixed.mixed
  "".refined
  rescued
  ensured
  on_many_lines
  with_default
  with_a_name_of_more_than_a_hundred_and_twenty_eight_bytes_so_that_it_is_not_sent_whole_by_the_program_in_the_kernel_whatever_it_does
  größe
  recurse(20)
  blocks(3) { fork_once }
  proc { fork_once }.call
  lambda { fork_once }.()
  -> { -> { fork_once }.call }.call
  method(:fork_once).call
  method(:fork_once).to_proc.call
  send(:fork_once)
  public_send(:then) { fork_once } if respond_to?(:then)
  [self].each(&:fork_publicly)
  { a: 1 }.each_pair { fork_once }
  (1..1).each { fork_once }
  1.upto(1) { fork_once }
  loop { fork_once; break }
  catch(:done) { throw :done, fork_once }
  tap { fork_once }
  for _ in [1] do fork_once end
  Class.new { define_method(:anonymous) { fork_once }; def plain; fork_once; end }.new.tap(&:anonymous).plain
  Object.new.instance_eval { fork_once }
  Outer.class_eval { fork_once }
  Outer.class_exec { fork_once }
  Outer.new.instance_eval("fork_once")
  eval("\n\nfork_once")
  eval("[1].each { eval('fork_once') }", binding, "made/up.rb", 77)
  Struct.new(:a) { def b; fork_once; end }.new(1).b
  Comparable.instance_method(:==).bind(inner).call(Outer::Inner.allocate)
end

class Object
  def fork_publicly
    fork_once
  end
end

def fibers
  Fiber.new { fork_once; Fiber.new { Fiber.new { fork_once }.resume }.resume; fork_once }.resume
  fiber = Fiber.new { Fiber.yield(fork_once); fork_once }
  fiber.resume
  [1].each { fiber.resume }
  enumerator = Enumerator.new { |y| y << fork_once; y << fork_once }
  enumerator.next
  enumerator.next
end

def threads
  Thread.new { recurse(3) }.join
  Thread.new { Thread.new { Fiber.new { Ways.spawned }.resume }.join }.join
  stop = false
  busy = 3.times.map { Thread.new { 1 + 1 until stop } }
  5.times { Ways.by_system }
  5.times { Thread.new { fork_once }.join }
  stop = true
  busy.each(&:join)
end

def signal
  got = Queue.new
  before = trap("USR1") { got << fork_once }
  Process.kill("USR1", Process.pid)
  got.pop
ensure
  trap("USR1", before || "DEFAULT")
end

# What a child notes, the parent says: its lines come through a pipe.  The child lives on until the end.
def children_that_fork
  reader, writer = IO.pipe
  child = lambda do
    SAID.clear
    recurse(1)
    Thread.new { Ways.spawned }.join
    grandchild = fork { exit!(0) }; note("fork", grandchild, caller_locations(0))
    wait_for(grandchild)
    writer.write(json(Array.new(SAID.size) { SAID.pop }))
    writer.close
    $stdin.read
    exit!(0)
  end
  pid = fork(&child); note("fork", pid, caller_locations(0))
  writer.close
  CHILDREN << pid
  reader.read
end

def other_files(directory)
  Dir.mkdir("#{directory}/ä b")
  Dir.mkdir("#{directory}/#{"long" * 50}")
  { "ä b/c'd.rb" => "", "#{"long" * 50}/#{"name" * 30}.rb" => "\n" * 300 }.each do |name, head|
    path = "#{directory}/#{name}"
    File.write(path, "#{head}fork_once\nclass Loaded\n  def self.call\n    fork_once\n  end\n  fork_once\nend\nLoaded.call\n")
    load(path)
    File.symlink(path, "#{directory}/link.rb")
    require("#{directory}/link.rb")
    File.unlink("#{directory}/link.rb")
  end
  lines = (0...600).map { |n| "  x = [#{n}].map { |y| y + #{n} } if x.is_a?(Array)\n" }.join
  File.write("#{directory}/large.rb", "def large\n  x = []\n  fork_once\n#{lines}  fork_once\n#{lines}\n  fork_once\nend\n")
  load("#{directory}/large.rb")
  large
end

def main(directory)
  Ways.singleton_methods(false).sort.each { |way| Ways.send(way) }
  all_kinds_of_code
  fibers
  threads
  signal
  other_files(directory) if directory
  text = children_that_fork
  recurse(150)
  say(**SAID.pop) until SAID.empty?
  PROGRESS.syswrite('{"children": ' + text + "}\n")
end

waiting = ARGV.delete("--wait")
say(hello: "ruby_forks", pid: Process.pid, ruby: RUBY_VERSION, waiting: !waiting.nil?)
$stdin.gets if waiting
at_exit { say(ready: true); $stdin.read; CHILDREN.each { |pid| wait_for(pid) } }
at_exit { fork_once; say(**SAID.pop) until SAID.empty? }
main(ARGV[0])

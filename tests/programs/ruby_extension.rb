# Forks from a C extension, within a block that it calls, within a block that it calls.
#
#   ruby ruby_extension.rb [--wait]      with ruby_extension.so beside it
#
# It talks the protocol of truth.h and prints {"pid": ...} of the child.

require_relative "ruby_extension.so"

def say(text)
  $stdout.syswrite(text + "\n")
end

def inner
  Forker.fork_once
end

say(%({"hello": "ruby_extension", "pid": #{Process.pid}, "ruby": "#{RUBY_VERSION}"}))
$stdin.gets if ARGV.include?("--wait")
Forker.each { Forker.each { say(%({"pid": #{inner}})) } }
say('{"ready": true}')
$stdin.read

# Forks once, and stands on that line until stdin closes.
#
#   ruby ruby_late.rb --wait
#
# It talks the protocol of truth.h and prints {"pid": ..., "line": ...} of the child.

def say(text)
  $stdout.syswrite(text + "\n")
end

def leak
  pid = fork { $stdin.read; exit!(0) }; say(%({"pid": #{pid}, "line": #{__LINE__}})); say('{"ready": true}'); Process.wait(pid)
end

say(%({"hello": "ruby_late", "pid": #{Process.pid}, "ruby": "#{RUBY_VERSION}"}))
$stdin.gets
[1].each { leak }

# Forks in each way that Perl has, and says before each from where ("-" for the code of a file itself):
# tests/kernel/test_perl_php_frames.py compares.  The protocol is that of truth.h.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;

$| = 1;

sub say_it {
    my ($way, $line, @functions) = @_;
    print qq({"way": "$way", "line": $line, "functions": "@functions"}\n);
}

print qq({"pid": $$}\n);
my $go = <STDIN>;

package Local::Worker;

sub start {
    main::say_it("fork in a method", __LINE__ + 1, "Local::Worker::start", "main::outer", "-");
    my $pid = fork();
    exit 0 if defined $pid && $pid == 0;
    waitpid $pid, 0;
}

package main;

sub outer { Local::Worker->start }

say_it("system", __LINE__ + 1, "-");
system "/bin/true";
say_it("backtick", __LINE__ + 1, "-");
my $out = `exit 0;`;
outer();
say_it("open", __LINE__ + 1, "-");
open(my $pipe, "-|", "/bin/true") or die;
close $pipe;
my $anonymous = sub {
    say_it("anonymous", __LINE__ + 1, "main::__ANON__", "-");
    eval { system "/bin/true" };
};
$anonymous->();
eval 'say_it("eval", 1, "-", "-"); system "/bin/true"';
my @sorted = sort {
    say_it("sort block", __LINE__ + 1, "-");
    system "/bin/true";
    $a <=> $b
} (2, 1);
require perl_required;
print qq({"ready": true}\n);
$go = <STDIN>;

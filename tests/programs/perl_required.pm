# A part of perl_forks.pl.
main::say_it("required", __LINE__ + 1, "-", "-");
system "/bin/true";
1;

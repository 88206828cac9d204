#!/usr/bin/perl
# The application of app.py on libfcgi-perl (FCGI.pm): six processes that accept from one listener.
use strict;
use warnings;
use FCGI;

my ($generation, $release) = @ENV{qw(DEPLOYTOOLS_GENERATION DEPLOYTOOLS_RELEASE)};
my $socket = $ENV{APP_SOCKET} ? FCGI::OpenSocket($ENV{APP_SOCKET}, 1024) : 0;
my %env;
my $request = FCGI::Request(\*STDIN, \*STDOUT, \*STDERR, \%env, $socket);

for (2 .. 6) {
    last if !fork;
}

while ($request->Accept() >= 0) {
    my ($path, $query) = split /\?/, $env{REQUEST_URI}, 2;
    kill 'KILL', 0 if $path eq '/crash';
    print "Content-Type: application/octet-stream\r\n";
    print "X-Generation: $generation\r\nX-Release: $release\r\n\r\n";
    if ($path eq '/big') {
        print 'x' x 300_000;
    }
    elsif ($path eq '/echo') {
        my $left = $env{CONTENT_LENGTH};
        while ($left > 0 and my $got = read STDIN, my $part, $left < 65536 ? $left : 65536) {
            print $part;
            $left -= $got;
        }
    }
    elsif ($path eq '/stream') {
        print 'x' x 1_000_000;
        $request->Flush();
        wait_for($query);
        print 'x' x 1_000_000;
    }
    else {
        select undef, undef, undef, $query if $path eq '/slow';
        wait_for($query) if $path eq '/until';
        print "hello from $release";
    }
}

sub wait_for {
    my ($file) = @_;
    select undef, undef, undef, 0.005 until -e $file;
    return;
}

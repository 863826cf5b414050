# Clients of a MariaDB server: each updates and reads single rows at fixed times and logs every pair.
# Arguments: socket, directory of the logs, clients, pairs per second of all, rows of the table.
# A line: when it ended (seconds since 1970), how long it took, and how long since it was due (milliseconds).
use strict;
use warnings;
use DBI;
use Time::HiRes qw(time sleep);

my ($socket, $directory, $clients, $per_second, $rows) = @ARGV;
my @children;
$SIG{TERM} = sub { kill 'TERM', @children; exit 0 };
for my $number (1 .. $clients) {
    my $child = fork() // die "fork: $!";
    if ($child) { push @children, $child; next }
    my $stop = 0;
    $SIG{TERM} = sub { $stop = 1 };
    srand($number);
    my $db = DBI->connect("DBI:mysql:database=bench;mysql_socket=$socket", 'root', '', { RaiseError => 1, PrintError => 0 });
    open(my $log, '>', "$directory/latency.$number") or die "latency.$number: $!";
    my $due = time() + $number / $per_second;
    my $parent = getppid();
    until ($stop or getppid() != $parent) {
        my $wait = $due - time();
        sleep($wait) if $wait > 0;
        my $started = time();
        my $id = 1 + int(rand($rows));
        my $done = eval {
            $db->do("UPDATE orders SET note = 'changed' WHERE id = $id");
            $db->selectrow_array("SELECT note FROM orders WHERE id = $id");
            1;
        };
        my $ended = time();
        printf $log "%.6f %.3f %.3f\n", $ended, ($ended - $started) * 1000, ($ended - $due) * 1000;
        printf $log "failed %s\n", $@ =~ s/ at \S+ line .*//sr unless $done;
        $due += $clients / $per_second;
    }
    close($log);
    exit 0;
}
waitpid($_, 0) for @children;

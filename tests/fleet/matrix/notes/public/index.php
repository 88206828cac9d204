<?php
// Says which code met which schema: "code=1 schema=1,1", the revision before and after its work.
header('Content-Type: text/plain');
if (isset($_GET['health'])) {
    if (file_exists('../unhealthy') || file_exists('/var/lib/matrix/sick')) http_response_code(500);
    exit('health');
}
$code = trim(file_get_contents('../code'));
$address = 'host=database user=app dbname=app sslmode=disable connect_timeout=2 tcp_user_timeout=2000';
$database = @pg_pconnect($address);
function ask($what) {
    global $database;
    $rows = $database ? @pg_query($database, $what) : false;
    if ($rows === false) {
        http_response_code(500);
        exit('no answer from the database: ' . ($database ? pg_last_error($database) : 'no connection'));
    }
    return pg_fetch_result($rows, 0, 0);
}
$revision = 'select max(name)::int from migrations';
$after = $before = ask($revision);
if (isset($_GET['slow'])) {
    usleep(1000 * (int) $_GET['slow']);
    $after = ask($revision);
}
if ($before == $code && $after == $code) {
    ask('select count(' . ($code == 1 ? 'title' : 'headline') . ') from notes');
}
echo "code=$code schema=$before,$after\n";

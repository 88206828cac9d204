<?php
// The application of app.py in PHP, for php-cgi and php-fpm: neither has a graceful stop as we start them.
$path = substr(strtok($_SERVER['REQUEST_URI'], '?'), strlen('/index.php'));  // PATH_INFO depends on the web server
$query = $_SERVER['QUERY_STRING'];
set_time_limit(0);

function wait_for(string $file): void
{
    while (!file_exists($file)) {
        usleep(5000);
        clearstatcache();
    }
}

header('Content-Type: application/octet-stream');
header('X-Generation: ' . getenv('DEPLOYTOOLS_GENERATION'));
header('X-Release: ' . getenv('DEPLOYTOOLS_RELEASE'));
switch ($path) {
    case '/crash':
        posix_kill(0, 9);
    case '/big':
        echo str_repeat('x', 300000);
        break;
    case '/echo':
        echo file_get_contents('php://input');
        break;
    case '/stream':
        while (ob_get_level()) {
            ob_end_flush();
        }
        echo str_repeat('x', 1000000);
        flush();
        wait_for($query);
        echo str_repeat('x', 1000000);
        break;
    case '/slow':
        usleep((int) (1000000 * (float) $query));
    case '/until':
        if ($path === '/until') {
            fwrite(fopen('php://stderr', 'w'), "until begins\n");
            wait_for($query);
        }
    default:
        echo 'hello from ' . basename(dirname(__DIR__));
}

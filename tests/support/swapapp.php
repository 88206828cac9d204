<?php
// swapapp.py in PHP: php-cgi has no graceful stop at all.
$path = $_SERVER['PATH_INFO'] ?? '';
header('Content-Type: application/octet-stream');
header('X-Generation: ' . getenv('DEPLOYTOOLS_GENERATION'));
header('X-Release: ' . getenv('DEPLOYTOOLS_RELEASE'));
if ($path === '/slow') {
    usleep((int) (1000000 * (float) $_SERVER['QUERY_STRING']));
}
if ($path === '/big') {
    echo str_repeat('x', 300000);
} elseif ($path === '/echo') {
    echo file_get_contents('php://input');
} else {
    echo 'hello from ' . basename(dirname(__DIR__));
}

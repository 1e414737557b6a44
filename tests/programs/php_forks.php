<?php
// Starts children in each way that PHP has, and says before each from where ("-" for the code of a file itself):
// tests/kernel/test_perl_php_frames.py compares.  The protocol is that of truth.h.

function announce(string $way, int $line, string ...$functions): void
{
    echo json_encode(["way" => $way, "line" => $line, "functions" => implode(" ", $functions)]), "\n";
}

class Worker
{
    public function start(): void
    {
        announce("method", __LINE__ + 1, "exec", "Worker::start", "outer", "-");
        exec("true");
    }

    public static function shared(): void
    {
        announce("static method", __LINE__ + 1, "shell_exec", "Worker::shared", "-");
        shell_exec("true");
    }
}

function in_fiber(): void
{
    announce("fiber", __LINE__ + 1, "exec", "in_fiber", "Fiber::start", "-");
    exec("true");
}

function outer(): void
{
    (new Worker())->start();
}

echo json_encode(["pid" => getmypid()]), "\n";
fgets(STDIN);
announce("proc_open", __LINE__ + 1, "proc_open", "-");
$process = proc_open(["/bin/true"], [], $pipes);
proc_close($process);
outer();
Worker::shared();
announce("callback", __LINE__ + 1, "system", "{closure}", "array_map", "-");
array_map(function ($command) { system($command); }, ["true"]);
announce("popen", __LINE__ + 1, "popen", "-");
pclose(popen("true", "r"));
if (function_exists("pcntl_fork")) {
    announce("fork", __LINE__ + 1, "pcntl_fork", "-");
    $pid = pcntl_fork();
    if ($pid === 0) {
        posix_kill(getmypid(), 9);
    }
    pcntl_waitpid($pid, $status);
}
if (class_exists("Fiber")) {
    (new Fiber("in_fiber"))->start();
}
announce("included", 3, "exec", "-", "-");
include __DIR__ . "/php_included.php";
echo json_encode(["ready" => true]), "\n";
fgets(STDIN);

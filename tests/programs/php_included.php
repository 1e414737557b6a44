<?php
// A part of php_forks.php.
exec("true");

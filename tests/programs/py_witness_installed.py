"""To be imported by a Python process that forktrace's tests do not write themselves, multiprocessing's fork server."""

import py_witness

py_witness.install()

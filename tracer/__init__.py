"""forktrace finds the code that forks children and never waits for them.

The way of the data, left to right (docs/architecture.md): ``probe`` loads the BPF programs and drains their
rings; ``records`` gives the bytes names; ``lifecycle`` keeps the family graph; ``stacks`` and ``blame`` turn a
raw stack into frames and libraries; ``trace`` is the finished model; ``report`` and ``export`` print it, and
``capture`` keeps it in a file.
"""

__version__ = "0.1.0"

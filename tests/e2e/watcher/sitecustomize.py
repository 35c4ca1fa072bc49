"""In a daemon that starts with this folder on its path: which steps of its event loop hold it for too long.

`EDGE_LOOP_WATCH` names a folder. There each daemon (a process one of whose arguments names DAEMONS) has a
file of its process id, with a JSON line for each step that held the loop over STEP seconds. A step is one
callback, of asyncio's loop and of uvloop's. It holds the loop while its thread runs (`cpu`) or waits for
anything but a processor, as a disk, a lock or the interpreter (`held`): by the clock, without the time for
which this thread was ready to run and had no processor, as the kernel counts it (schedstat). Of another
thread of the daemon that had none meanwhile the time is left out, too: the step may have waited for that one.
So is what the host of a virtual machine took of its processors (steal). So a busy machine counts for nothing,
and on a quiet one nothing is left out. A processor that is shared is slow, too: the time on one is in units
of what fixed pieces of work take now, of reckoning and of fresh memory, by the least that they have
taken in any daemon of this folder. A step in which the process was stopped (SIGSTOP) is none.
"""

import os
import sys

DAEMONS = ("aggregator.main", "edge_node.main", "tests.e2e.segment_each")
STEP = 0.020
LOOK = 0.005
"""So often a thread looks at the threads' waits, and at where a step is that takes long."""
TRACE = bool(os.environ.get("EDGE_LOOP_TRACE"))
"""Find out where other threads are, too, when none of them lets the looking one have the interpreter."""
STACK = 24
"""Lines of a step's stack that are kept, the innermost."""


def _start(folder):
    import _thread
    import asyncio.events
    import faulthandler
    import gc
    import json
    import mmap
    import signal
    import threading
    import time

    path = os.path.join(folder, str(os.getpid()))
    open(path, "a").close()

    def reckon():
        sum(map(abs, range(10_000)))

    def touch():
        with mmap.mmap(-1, 1 << 20) as fresh:
            fresh.write(bytes(len(fresh)))

    def ns(work):
        """ns of a processor for a fixed piece of work, about half a millisecond."""
        began = time.thread_time_ns()
        work()
        return time.thread_time_ns() - began

    def least(work, found):
        best = os.path.join(folder, work.__name__)
        try:
            with open(best) as file:
                found = min(found, int(file.read() or found))
        except (FileNotFoundError, ValueError):
            pass
        with open(f"{best}.{os.getpid()}", "w") as file:
            file.write(str(found))
        os.replace(f"{best}.{os.getpid()}", best)
        return found

    def slowness():
        """How many times as long as at best a processor needs now. What copies, needs fresh memory."""
        now = {work: ns(work) for work in (reckon, touch)}
        return max(1.0, *(took / least(work, took) for work, took in now.items()))

    def stolen():
        """ns that the host has taken of all processors; it counts in ticks, of which one may be under way."""
        with open("/proc/stat", "rb", 0) as file:
            ticks = int(file.read(200).split(b"\n", 1)[0].split()[8])
        return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    for work in (reckon, touch):
        least(work, min(ns(work) for _ in range(20)))

    class Watch:
        """Of one loop's thread. Written by it alone, but for what `look` finds."""

        def __init__(self):
            self.ident, self.tid = _thread.get_ident(), _thread.get_native_id()
            self.before = ({}, 0)  # waits of the other threads and steal, lately
            self.began = 0  # of the step under way, in ns; 0: there is none
            self.steps = 0
            self.stacks = []
            self.beside = []  # what the kernel says this thread waits in, and where other threads are
            self.stopped = 0
            self.trace = open(path + ".trace", "w+") if TRACE else None  # noqa: SIM115
            self.dump = os.memfd_create("stacks")
            self.own = os.open(f"/proc/self/task/{self.tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self.collecting, self.collected = 0, 0
            gc.callbacks.append(self.garbage)
            signal.signal(signal.SIGCONT, self.went_on)
            threading.Thread(target=self.look, name="watcher of the loop", daemon=True).start()

        def garbage(self, phase, info):
            if phase == "start":
                self.collecting = time.thread_time_ns()
            else:
                self.collected += time.thread_time_ns() - self.collecting

        def went_on(self, number, frame):
            self.stopped = time.perf_counter_ns()

        def delay(self):
            return int(os.pread(self.own, 96, 0).split()[1])

        def waits_in(self):
            try:
                with (
                    open(f"/proc/self/task/{self.tid}/wchan") as file,
                    open(f"/proc/self/task/{self.tid}/syscall") as call,
                ):
                    return f"{file.read()} {call.read().split()[0]}"
            except OSError as error:
                return str(error)

        def frames(self):
            """Thread -> its stack, the innermost last. Written at once, with the interpreter held: frames
            of threads that run on meanwhile would be walked into what is no more, which has ended daemons."""
            os.ftruncate(self.dump, 0)
            os.lseek(self.dump, 0, os.SEEK_SET)
            faulthandler.dump_traceback(self.dump)
            found = {}
            for line in os.pread(self.dump, 1 << 20, 0).decode(errors="replace").splitlines():
                if "hread 0x" in line:
                    lines = found.setdefault(int(line.split("hread ")[1].split()[0], 16), [])
                elif found and line.startswith('  File "'):
                    file, _, rest = line.removeprefix('  File "').rpartition('", line ')
                    number, _, name = rest.partition(" in ")
                    lines.insert(0, f"{file}:{number} {name}")
            return found

        def others(self):
            found = {}
            for tid in os.listdir("/proc/self/task"):
                if tid != str(self.tid):
                    try:
                        with open(f"/proc/self/task/{tid}/schedstat", "rb", 0) as file:
                            found[tid] = int(file.read(96).split()[1])
                    except (OSError, ValueError, IndexError):
                        pass  # it has just ended
            return found

        def look(self):
            seen, described = 0, 0
            while True:
                if TRACE:  # without the interpreter: of whoever holds it meanwhile
                    self.trace.seek(0)
                    self.trace.truncate()
                    faulthandler.dump_traceback_later(STEP, file=self.trace)
                time.sleep(LOOK)
                began, now = self.began, time.perf_counter_ns()
                if began and now - began > 1e9 * STEP / 4:  # its stack, as long as it lasts, twice at most
                    if described != began:
                        described, self.stacks, self.beside = began, [], []
                    if len(self.stacks) < 2:
                        frames = self.frames()
                        mine = frames.pop(self.ident, [])
                        self.stacks.append([f for f in mine if "importlib" not in f][-STACK:])
                        self.beside = [self.waits_in(), *(other[-1] for other in frames.values() if other)]
                elif seen != self.steps:
                    # Counts for steps that begin from now on: nothing of them is in it.
                    seen, self.before = self.steps, (self.others(), stolen())

        def step(self, run, name):
            cpu, delay, self.began = time.thread_time_ns(), self.delay(), time.perf_counter_ns()
            began = self.began
            self.steps += 1
            (before, steal), self.collected = self.before, 0
            try:
                return run()
            finally:
                wall, cpu = time.perf_counter_ns() - began, time.thread_time_ns() - cpu
                if wall > 1e9 * STEP:
                    held, steal = wall - (self.delay() - delay), stolen() - steal
                    cpu -= steal  # a kernel without accounting for it counts it as the thread's own time
                    if held > 1e9 * STEP:
                        waits = [after - before.get(tid, 0) for tid, after in self.others().items()]
                        held -= min(wall, max(waits, default=0)) + steal
                    if max(held, cpu) > 1e9 * STEP:
                        slow = slowness()
                        held, cpu = held - cpu + cpu / slow, cpu / slow
                        time.sleep(0.01)  # another thread may be about to hear that the process goes on
                    if max(held, cpu) > 1e9 * STEP and self.stopped < began:
                        self.tell(wall, held, cpu, _named(name), self.stacks)
                self.began = 0

        def tell(self, wall, held, cpu, name, stacks):
            if TRACE and not stacks:
                self.trace.seek(0)
                stacks = [self.trace.read().splitlines()]
            line = {
                "time": time.time(), "daemon": sys.orig_argv[-20:], "wall": wall / 1e6, "held": held / 1e6,
                "cpu": cpu / 1e6, "step": name, "stacks": stacks, "beside": self.beside,
                "garbage": self.collected / 1e6,
            }  # fmt: skip
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")

    watches = {}

    def watched(run, name):
        ident = _thread.get_ident()
        if ident != main:
            return run()
        watch = watches.get(ident)
        if watch is None:
            watch = watches[ident] = Watch()
        if watch.began:  # a step within a step
            return run()
        return watch.step(run, name)

    main = threading.main_thread().ident
    _run = asyncio.events.Handle._run
    asyncio.events.Handle._run = lambda handle: watched(lambda: _run(handle), handle._callback)
    _uvloop(watched)


def _uvloop(watched):
    """The same of a uvloop, whose handles cannot be looked into: of all it is given to call."""
    try:
        import uvloop
    except ImportError:
        return

    def of(callback):
        return lambda *given: watched(lambda: callback(*given), callback)

    class Watched(uvloop.Loop):
        def call_soon(self, callback, *given, context=None):
            return super().call_soon(of(callback), *given, context=context)

        def call_soon_threadsafe(self, callback, *given, context=None):
            return super().call_soon_threadsafe(of(callback), *given, context=context)

        def call_later(self, delay, callback, *given, context=None):
            return super().call_later(delay, of(callback), *given, context=context)

        def call_at(self, when, callback, *given, context=None):
            return super().call_at(when, of(callback), *given, context=context)

        def add_reader(self, file, callback, *given):
            return super().add_reader(file, of(callback), *given)

        def add_writer(self, file, callback, *given):
            return super().add_writer(file, of(callback), *given)

    uvloop.Loop = Watched
    uvloop.new_event_loop = Watched


def _named(callback):
    task = getattr(callback, "__self__", None)
    if task is not None and hasattr(task, "get_coro"):
        coroutine = task.get_coro()
        return f"{task.get_name()}: {getattr(coroutine, '__qualname__', coroutine)}"
    return getattr(callback, "__qualname__", repr(callback))


if os.environ.get("EDGE_LOOP_WATCH") and any(
    name in argument for argument in getattr(sys, "orig_argv", ()) for name in DAEMONS
):
    _start(os.environ["EDGE_LOOP_WATCH"])

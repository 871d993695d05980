"""Asynchronous I/O (section 4 of the notes).

    process   |submit|---- goes on: computes, other clients ----|look|  answer
    kernel           |-- wait for the data --|-- copying --|in place|

The process hands the read over and goes on. The kernel waits for the data and
copies it into a buffer of ours. When we look, it is already in place. That is
completion. select and epoll only say that recv would not wait (readiness):
the copy is still a call of the process.

On Linux 6.0 and later this is done with io_uring, which this script calls
directly, through ctypes. On Windows asyncio does it, with IOCP. On Linux and
macOS asyncio does not: under its `await` is the multiplexing of section 3.
communicate is written once and runs on each of these engines.

Run it:      python async_server.py --trace
Talk to it:  python client.py --port 8084
Read first:  communicate, accept, serve_io_uring, serve_asyncio; of IoUringLoop
             sock_recv, run, submit, completions. The rest can wait.
"""
import argparse
import errno
import os
import signal
import socket
import struct
import sys
import threading
import time
import types
import warnings

PORT = 8084             # next to those of the notes, which have no listing for this model
BUFSIZE = 32768         # bytes that one recv takes at most
RETRY_DELAY = 0.1       # seconds until the next try after a call has failed
answer = bytes.upper    # makes an answer of a client's bytes; see choose_answer
loop = None     # the event loop: an IoUringLoop or asyncio's
tasks = []      # asyncio's task of accept


# ---- the model

async def communicate(loop, conn):
    """Talk with one client until it leaves. At each await the process goes on with others."""
    with conn:
        try:
            while True:
                data = await loop.sock_recv(conn, BUFSIZE)      # resumed when data is in place
                if not data:
                    break
                await loop.sock_sendall(conn, answer(data))     # resumed when all is taken
        except (OSError, MemoryError):
            pass    # connection lost, or no memory: only this conversation ends


async def accept(loop, listener, sleep):
    """Start a conversation with each client that connects."""
    while True:
        try:
            conn, addr = await loop.sock_accept(listener)
            loop.create_task(communicate(loop, conn))
        except ConnectionError:         # the client left before we accepted it
            await sleep(0)
        except OSError as error:
            report_accept_error(error)
            await sleep(RETRY_DELAY)


def serve_io_uring(listener):
    """Completion: the loop is the IoUringLoop below."""
    if not loop.tasks:      # keep_serving may call this again
        loop.create_task(accept(traced(loop), listener, loop.sleep))
    loop.run()


def serve_asyncio(listener):
    """asyncio's own loop: on Windows completion (IOCP), elsewhere readiness (a selector)."""
    listener.setblocking(False)
    if not tasks:           # keep_serving may call this again
        tasks.append(loop.create_task(accept(traced(loop), listener, asyncio.sleep)))
    loop.run_forever()


# ---- io_uring: class IoUringLoop, open_io_uring
# Names and numbers are those of <linux/io_uring.h>.

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427  # <asm/unistd.h>
IORING_SETUP_CQSIZE = 1 << 3
IORING_SETUP_COOP_TASKRUN = 1 << 8              # Linux 5.19
IORING_SETUP_SINGLE_ISSUER = 1 << 12            # Linux 6.0
IORING_OFF_SQES = 0x10000000
IORING_ENTER_GETEVENTS = 1 << 0
IORING_REGISTER_PBUF_RING = 22                  # Linux 5.19
IORING_REGISTER_SYNC_CANCEL = 24                # Linux 6.0
IORING_ASYNC_CANCEL_ALL, IORING_ASYNC_CANCEL_ANY = 1 << 0, 1 << 2
IORING_OP_TIMEOUT, IORING_OP_ACCEPT, IORING_OP_SEND, IORING_OP_RECV = 11, 13, 26, 27
IOSQE_BUFFER_SELECT = 1 << 5
IORING_CQE_F_BUFFER, IORING_CQE_BUFFER_SHIFT = 1 << 0, 16
io_uring_sqe = struct.Struct('BBxxi8xQI4xQ24x')     # opcode, flags, fd, addr, len, user_data
io_uring_cqe = struct.Struct('QiI')                 # user_data, res, flags
io_uring_buf = struct.Struct('QIHxx')               # addr, len, bid
SQ_ENTRIES, CQ_ENTRIES, BUFFERS = 1024, 4096, 1024      # powers of two
FIRST_BUFFERS = 64      # provided at the start; others when needed: untouched memory costs nothing
STRIDE = BUFSIZE + 64   # with a power of two, all buffers would begin in the same cache sets
HEADER = bytes.__basicsize__ - 1    # in CPython the bytes begin here, counted from id(object)


class IoUringLoop:
    """An event loop on io_uring, with the four methods of asyncio's loops that we need.

    The process and the kernel share two queues in memory. We write what the coroutines ask
    for to the submission queue, and io_uring_enter hands it over. The kernel writes what it
    has done to the completion queue.

    Without IORING_SETUP_DEFER_TASKRUN it does so at any time, also while Python computes.
    But the thread that has submitted does that work itself, on its way back from an
    interrupt or a system call ("task work", io_uring_setup(2), COOP_TASKRUN). So no other
    processor writes what we read, and we need no memory barriers.

    No memory is freed while the kernel may still use it. The buffers for recv live as long
    as the loop. The coroutine that waits for a send holds its bytes. `close` waits for
    everything in flight. Raises OSError where the kernel refuses.
    """

    def __init__(self):
        libc = ctypes.PyDLL(None, use_errno=True)   # PyDLL: no other thread needs the GIL
        self.syscall = libc.syscall
        self.syscall.argtypes, self.syscall.restype = [ctypes.c_long] * 7, ctypes.c_long
        params = (ctypes.c_uint32 * 30)()   # io_uring_params; sq_off from 10, cq_off from 20
        params[1] = CQ_ENTRIES
        params[2] = (IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER
                     | IORING_SETUP_COOP_TASKRUN)
        self.fd = self.checked_syscall(IO_URING_SETUP, SQ_ENTRIES, ctypes.addressof(params))
        self.sq_head, self.sq_tail, array = params[10] // 4, params[11] // 4, params[16] // 4
        self.cq_head, self.cq_tail, self.cqes = params[20] // 4, params[21] // 4, params[25]
        size = max(4 * (array + SQ_ENTRIES), self.cqes + io_uring_cqe.size * CQ_ENTRIES)
        self.rings = mmap.mmap(self.fd, size)
        self.ring_u32 = memoryview(self.rings).cast('I')
        for slot in range(SQ_ENTRIES):      # the kernel looks here which entry is next
            self.ring_u32[array + slot] = slot
        self.sqes = mmap.mmap(self.fd, SQ_ENTRIES * io_uring_sqe.size, offset=IORING_OFF_SQES)
        self.queue = []         # what the next call submits
        self.tasks = {}         # user_data: the `send` of the coroutine that waits for it
        self.tail = self.head = 0       # where we write submissions, and read completions
        self.current_task = self.created = 0
        self.eager = False      # submit before each answer: with slow ones, nobody waits for that
        self.provide_buffers()

    def provide_buffers(self):
        """Make a ring of buffers. The kernel takes one when data comes: idle clients need none."""
        self.buffers = mmap.mmap(-1, BUFFERS * STRIDE)
        self.buffer_ring = mmap.mmap(-1, BUFFERS * io_uring_buf.size)
        self.buffer_u16 = memoryview(self.buffer_ring).cast('H')
        first, ring = (ctypes.addressof(ctypes.c_char.from_buffer(memory))
                       for memory in (self.buffers, self.buffer_ring))
        self.buffer = [io_uring_buf.pack(first + bid * STRIDE, BUFSIZE, bid)
                       for bid in range(BUFFERS)]
        self.to_return, self.reserve = self.buffer[:FIRST_BUFFERS], self.buffer[FIRST_BUFFERS:]
        self.buffer_tail = 0
        io_uring_buf_reg = struct.pack('QI28x', ring, BUFFERS)
        self.register(IORING_REGISTER_PBUF_RING, io_uring_buf_reg)

    @types.coroutine
    def sock_accept(self, listener):
        self.queue.append(io_uring_sqe.pack(
            IORING_OP_ACCEPT, 0, listener.fileno(), 0, 0, self.current_task))
        self.current_task, res, _ = yield   # the completion: whose it is, the result, flags
        if res < 0:
            raise OSError(-res, os.strerror(-res))
        conn = socket.socket(listener.family, listener.type, listener.proto, fileno=res)
        conn.set_inheritable(False)     # as Python's own accept does (PEP 446)
        try:
            return conn, conn.getpeername()
        except OSError:                 # it is lost already
            return conn, ('?', 0)

    @types.coroutine
    def sock_recv(self, conn, size):
        while True:
            self.queue.append(io_uring_sqe.pack(
                IORING_OP_RECV, IOSQE_BUFFER_SELECT, conn.fileno(), 0, size, self.current_task))
            self.current_task, res, flags = yield
            if res > 0:         # in place; a bytes object of it is Python's own copy
                bid = flags >> IORING_CQE_BUFFER_SHIFT
                self.to_return.append(self.buffer[bid])
                start = bid * STRIDE
                return self.buffers[start:start + res]
            if flags & IORING_CQE_F_BUFFER:     # the kernel took a buffer anyway: give it back
                self.to_return.append(self.buffer[flags >> IORING_CQE_BUFFER_SHIFT])
            if res == 0:
                return b''
            if res != -errno.ENOBUFS:
                raise OSError(-res, os.strerror(-res))
            if self.reserve:    # no buffer was left: provide one more, and ask again
                self.to_return.append(self.reserve.pop())

    @types.coroutine
    def sock_sendall(self, conn, data):
        while True:
            self.queue.append(io_uring_sqe.pack(
                IORING_OP_SEND, 0, conn.fileno(), id(data) + HEADER, len(data),
                self.current_task))
            self.current_task, res, _ = yield
            if res == len(data):
                return
            if res < 0:
                raise OSError(-res, os.strerror(-res))
            data = data[res:]       # the kernel took less than all

    @types.coroutine
    def sleep(self, seconds):
        timespec = struct.pack('qq', int(seconds), int(seconds % 1 * 1e9))
        self.queue.append(io_uring_sqe.pack(
            IORING_OP_TIMEOUT, 0, -1, id(timespec) + HEADER, 1, self.current_task))
        self.current_task, _, _ = yield

    def create_task(self, coroutine):
        """Run COROUTINE up to its first await. The completion of that operation resumes it."""
        caller, self.current_task = self.current_task, self.created
        self.created += 1
        self.tasks[self.current_task] = coroutine.send
        try:
            coroutine.send(None)
        except StopIteration:       # it has ended before its first await
            del self.tasks[self.current_task]
        self.current_task = caller

    def run(self):
        """Resume the coroutines as their operations complete, until an exception ends it."""
        tasks = self.tasks
        while True:
            completed = self.ring_u32[self.cq_tail] != self.head    # while we computed
            if self.queue or not completed:
                self.submit(wait=not completed)
            for completion in self.completions():
                if self.eager and self.queue:
                    self.submit()
                try:
                    tasks[completion[0]](completion)
                except StopIteration:
                    del tasks[completion[0]]

    def submit(self, wait=False):
        """Call io_uring_enter: hand over what the coroutines ask for. WAIT for a completion?"""
        if self.to_return:
            copy_to_ring(self.buffer_ring, io_uring_buf.size, self.buffer_tail, self.to_return)
            self.buffer_tail = (self.buffer_tail + len(self.to_return)) & 0xffff
            self.buffer_u16[7] = self.buffer_tail   # `tail` is in the first entry's last bytes
            self.to_return.clear()
        not_taken = (self.tail - self.ring_u32[self.sq_head]) & 0xffffffff     # last time
        batch = self.queue[:SQ_ENTRIES - not_taken]
        del self.queue[:SQ_ENTRIES - not_taken]
        copy_to_ring(self.sqes, io_uring_sqe.size, self.tail, batch)
        self.ring_u32[self.sq_tail] = self.tail = (self.tail + len(batch)) & 0xffffffff
        try:
            self.checked_syscall(
                IO_URING_ENTER, self.fd, not_taken + len(batch), wait and not self.queue,
                IORING_ENTER_GETEVENTS)
        except OSError as error:    # a signal, or the completion queue is full: read it first
            if error.errno not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
                raise

    def completions(self):
        """Return (user_data, res, flags) of what the kernel has completed since last time."""
        head, tail = self.head, self.ring_u32[self.cq_tail]
        first = self.cqes + head % CQ_ENTRIES * io_uring_cqe.size
        last = self.cqes + tail % CQ_ENTRIES * io_uring_cqe.size
        if first < last or head == tail:
            completed = self.rings[first:last]
        else:                       # after the last slot comes the first one
            end = self.cqes + CQ_ENTRIES * io_uring_cqe.size
            completed = self.rings[first:end] + self.rings[self.cqes:last]
        self.ring_u32[self.cq_head] = self.head = tail      # now the kernel may reuse the slots
        return io_uring_cqe.iter_unpack(completed)

    def in_flight(self):
        """Return the submissions that the kernel has taken, less the completions we have read."""
        return (self.ring_u32[self.sq_head] - self.head) & 0xffffffff

    def close(self):
        """Cancel what is in flight, and wait until the kernel has let go of all memory."""
        for task in self.tasks:     # one by one: the kernel finds each at once
            self.cancel(task, 0)
        while self.in_flight():
            self.ring_u32[self.cq_head] = self.head = self.ring_u32[self.cq_tail]
            try:
                wanted = min(self.in_flight(), CQ_ENTRIES)
                self.checked_syscall(
                    IO_URING_ENTER, self.fd, 0, wanted, IORING_ENTER_GETEVENTS)
            except InterruptedError:    # by the timer of `run`: cancel in the slow way too
                self.cancel(0, IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EBUSY):
                    raise

    def cancel(self, task, flags):
        try:        # struct io_uring_sync_cancel_reg: addr, fd, flags, timeout (none)
            argument = struct.pack('QiIqq32x', task, -1, flags, -1, -1)
            self.register(IORING_REGISTER_SYNC_CANCEL, argument)
        except OSError:
            pass    # it is completed already

    def register(self, opcode, argument):
        self.checked_syscall(IO_URING_REGISTER, self.fd, opcode, id(argument) + HEADER, 1)

    def checked_syscall(self, number, first, second, third=0, fourth=0):
        result = self.syscall(number, first, second, third, fourth, 0, 0)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result


def copy_to_ring(ring, size, tail, entries):
    """Copy ENTRIES of SIZE bytes into a RING, from slot TAIL on. After its last slot comes
    its first."""
    data, start = b''.join(entries), tail * size % len(ring)
    end = start + len(data)
    if end > len(ring):
        ring[:end - len(ring)] = data[len(ring) - end:]
        data, end = data[:len(ring) - end], len(ring)
    ring[start:end] = data


def open_io_uring(loop_class):
    """Return a LOOP_CLASS. Raises OSError, with the reason in words, if there can be none."""
    global ctypes, mmap
    if not sys.platform.startswith('linux') or sys.implementation.name != 'cpython':
        raise OSError('it needs Linux and CPython')
    try:
        import ctypes
        import mmap
        return loop_class()
    except ImportError as error:
        raise OSError(f'{error}')
    except OSError as error:
        reasons = {errno.EPERM: 'refused, by a container or by sysctl kernel.io_uring_disabled',
                   errno.ENOSYS: 'this kernel has none, or a container hides it',
                   errno.EINVAL: 'needs Linux 6.0 or later',
                   errno.ENOMEM: 'too little locked memory is allowed (ulimit -l)'}
        raise OSError(reasons.get(error.errno, error.strerror))


# ---- start

def open_listener(family, address):
    """Return a listening socket. These are the first steps of every server in the notes."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == 'posix':      # restart at once; on Windows two servers could share the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # an answer leaves at once, not held back to fill a packet; accepted sockets inherit this
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(address)
    # with the notes' backlog of 5, a burst of clients would wait for seconds
    listener.listen(max(socket.SOMAXCONN, 4096))
    return listener


def open_asyncio():
    """Return asyncio's loop. It is slow to import, so we do that only where it is needed."""
    global asyncio
    import asyncio
    # if a stop comes just before an await, or while a task runs, Python would complain
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
    try:
        loop = asyncio.new_event_loop()
    except OSError as error:
        sys.unraisablehook = lambda *_: None    # a half-made loop complains when it is deleted
        sys.exit(f'cannot start: {error.strerror}')
    loop.set_exception_handler(
        lambda loop, context: stop_time or loop.default_exception_handler(context))
    return loop


def traced(loop):
    """Return what the conversations use as their loop. --trace puts TracedLoop here."""
    return loop


def main():
    global answer, loop, traced
    parser = arguments()
    parser.add_argument('--engine', default='auto', choices=['auto', 'io_uring', 'asyncio'],
                        help='auto: io_uring where the kernel permits it, otherwise asyncio')
    args = parser.parse_args()
    answer, traced = choose_answer(args), TracedLoop if args.trace else traced
    why = ''
    try:
        if args.engine != 'asyncio':
            loop = open_io_uring(TracedIoUringLoop if args.trace else IoUringLoop)
    except OSError as error:
        if args.engine == 'io_uring':
            sys.exit(f'there is no io_uring here: {error}; take --engine asyncio')
        why = f'; no io_uring: {error}'
    listener = listen(args.host, args.port)
    if loop:        # run never returns
        loop.eager = bool(args.delay or args.work)
        run(serve_io_uring, listener, 'asynchronous, io_uring: completion', loop.close)
    loop = open_asyncio()
    kind = 'IOCP: completion' if os.name == 'nt' else 'a selector: readiness'
    run(serve_asyncio, listener, f'asynchronous, asyncio on {kind}{why}')


# ---- --trace

class TracedIoUringLoop(IoUringLoop):
    """With --trace, a line per look at the completion queue: was a system call needed?"""
    waiting = entered = False   # for a completion; io_uring_enter was called since the last look
    reported = 0                # completions that a line has named, and that are not read yet

    def submit(self, wait=False):
        self.trace_look()
        if wait and not self.waiting:
            self.waiting, self.start = True, time.perf_counter()
        self.entered = True
        super().submit(wait)

    def completions(self):
        count = self.unread()
        if self.waiting and count:
            words = f'waited {elapsed(self.start)} in io_uring_enter, {count} completed'
            trace(None, 'enter', words)
            self.waiting = False
        elif not self.entered:
            self.trace_look()
        self.entered, self.reported = False, 0
        return super().completions()

    def trace_look(self):
        """Print what has completed before we make the next system call."""
        if self.unread() > self.reported:
            count = self.unread() - self.reported
            trace(None, 'look', f'{count} completed meanwhile, without io_uring_enter')
            self.reported += count

    def unread(self):
        return (self.ring_u32[self.cq_tail] - self.head) & 0xffffffff


class TracedLoop:
    """With --trace, stands before a loop: a line when an operation starts, and when it ends."""

    def __init__(self, loop):
        self.loop, self.create_task = loop, loop.create_task
        self.numbers, self.count = {}, 0    # of the connections, by their descriptors
        self.started = 'queued' if isinstance(loop, IoUringLoop) else 'submitted'
        self.ended = {'recv': 'in place, seen after {}: ', 'sendall': 'taken, seen after {}: '}
        if os.name == 'posix' and not isinstance(loop, IoUringLoop):
            self.started = 'asked'
            self.ended = dict.fromkeys(self.ended, 'ready after {}, copied: ')

    async def sock_accept(self, listener):
        conn, addr = await self.loop.sock_accept(listener)
        self.count += 1
        self.numbers[conn.fileno()] = self.count
        trace(self.count, 'accept', f'{format_address(addr)} joined')
        return conn, addr

    async def sock_recv(self, conn, size):
        return await self.traced_call(conn, 'recv', self.loop.sock_recv(conn, size))

    async def sock_sendall(self, conn, data):
        await self.traced_call(conn, 'sendall', self.loop.sock_sendall(conn, data), data)

    @types.coroutine
    def traced_call(self, conn, call, operation, data=None):
        """Do what `await operation` does, and look at the clock at each step."""
        number, start = self.numbers[conn.fileno()], time.perf_counter()
        words = None
        try:
            awaited = operation.send(None)
            words = f'{self.started} in {elapsed(start)}; the process goes on'
            trace(number, call, words)
            while True:
                awaited = operation.send((yield awaited))
        except StopIteration as end:
            result = end.value
        except OSError as error:
            trace(number, call, f'ended after {elapsed(start)}: {error.strerror}')
            raise
        ended = self.ended[call] if words else 'done at once, in {}: '
        trace(number, call, ended.format(elapsed(start)), data or result)
        return result


# ---- the same in every server

STOP_SIGNALS = [getattr(signal, each) for each in ('SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGBREAK')
                if hasattr(signal, each)]
if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    STOP_SIGNALS.append(signal.SIGHUP)      # the terminal was closed; nohup makes us ignore that
START_TIME = time.perf_counter()
current = threading.local()     # .number: the connection of this thread's last line of trace
last_reports = {}               # when each line of `report` was last printed (time.monotonic)
stop_time = 0                   # when a signal asked us to stop (time.monotonic)


def listen(host, port):
    """Return a listener on HOST and PORT; if that cannot be, exit with status 1 and the reason."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return open_listener(family=found[0], address=found[4])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        sys.exit(f'cannot listen on host {host!a}, port {port}: {reason}')


def refuse(conn, addr, reason):
    """Close the connection of one client, so that the others can stay."""
    print_line(f'refused {format_address(addr)}: {reason}', sys.stderr)
    conn.close()


def report_accept_error(error):
    """Say why no client can be accepted now. The usual reason is that no descriptor is left."""
    report(f'cannot accept ({error.strerror}): new clients wait; connected ones are still served')


def report(line):
    """Print LINE on standard error, but the same line at most once in ten seconds."""
    if time.monotonic() - last_reports.get(line, -10) >= 10:
        last_reports[line] = time.monotonic()
        print_line(line, sys.stderr)


def choose_answer(args):
    """Return what makes an answer from a client's bytes: bytes.upper, or the same made slow."""
    def slow_answer(data):
        start = time.perf_counter()
        if args.delay:
            time.sleep(args.delay)      # as for a database: this thread sleeps, others can run
            if args.trace:
                trace(current.number, 'answer', f'waited {elapsed(start)}')
        start = time.perf_counter()
        if args.work:
            compute(args.work)
            if args.trace:
                words = f'computed {args.work:.3f} s of CPU in {elapsed(start)}'
                trace(current.number, 'answer', words)
        return data.upper()
    return slow_answer if args.delay or args.work else bytes.upper


def compute(seconds):
    """Use SECONDS of CPU time, holding the GIL: threads that compute take turns."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def trace(number, call, words, data=None):
    """Print a line of at most 80 columns: time since the start, connection, call, its phases."""
    if number:
        current.number = number
    if data is not None:
        words += f'{len(data)} bytes {data[:60]!r}' if data else "b'': the client closed"
    who = f'#{number}' if number else '-'
    line = f'{time.perf_counter() - START_TIME:8.3f} s  {who:<4} {call:<8} {words}'
    print_line(line if len(line) <= 80 else line[:77] + '...', sys.stderr)


def elapsed(start):
    """Return the time since START (time.perf_counter) in words, in the unit that fits."""
    seconds = time.perf_counter() - start
    if seconds < 0.001:
        return f'{seconds * 1e6:.0f} us'
    return f'{seconds:.3f} s' if seconds >= 1 else f'{seconds * 1e3:.1f} ms'


def print_line(line, stream=sys.stdout):
    """Write LINE at once. os.write holds no lock, so a signal can end it if nobody reads."""
    try:
        if stream:      # None if it was closed when we started
            line = f'{line}\n'.encode(stream.encoding, 'backslashreplace')
            os.write(stream.fileno(), line)
    except OSError:
        pass            # nobody reads any more (`| head -1`): the server goes on


def format_address(address):
    """Return ADDRESS as people write it: 127.0.0.1:8080 or [::1]:8080."""
    return ('[{}]:{}' if ':' in address[0] else '{}:{}').format(*address)


def number_between(kind, low, high):
    """Return an argparse type: a number of that KIND from LOW to HIGH (not nan, not inf)."""
    def number(text):
        if low <= kind(text) <= high:
            return kind(text)
        raise argparse.ArgumentTypeError(f'{text} is not between {low} and {high}')
    return number


def arguments():
    """Return a parser of the arguments that every server has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    seconds = {'default': 0, 'type': number_between(float, 0, 86400), 'metavar': 'SECONDS'}
    add = parser.add_argument
    add('--host', default='127.0.0.1',
        help='address to listen on (default %(default)s; ::1 for IPv6)')
    add('--port', default=PORT, type=number_between(int, 0, 65535),
        help='port to listen on (default %(default)s; 0 takes a free one)')
    add('--delay', help='each answer waits so long, as for a database', **seconds)
    add('--work', help='each answer needs so much computing (CPU time)', **seconds)
    add('--trace', action='store_true', help='print each I/O call and its phases')
    return parser


def run(serve, listener, model, clean_up=lambda: None):
    """Print `listening`, serve until a signal asks to stop, clean up, exit (0). Never returns."""
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, on_stop_signal)
        start_timer()
        address = format_address(listener.getsockname())
        print_line(f'listening on {address} ({model}; Ctrl-C stops)')
        if os.name == 'posix':
            keep_serving(serve, listener)
        else:   # on Windows Ctrl-C interrupts no blocking call: the main thread must not block
            thread = threading.Thread(target=keep_serving, args=(serve, listener), daemon=True)
            thread.start()
            while thread.is_alive() and not stop_time:
                thread.join(0.5)
            if not stop_time:
                sys.exit(1)     # it has failed, and said why
    except KeyboardInterrupt:
        pass
    finish(clean_up)


def keep_serving(serve, listener):
    """Call SERVE. If the kernel has no memory for its calls, wait and go on (select(2): ENOMEM)."""
    while True:
        try:
            serve(listener)
        except (OSError, MemoryError) as error:
            reason = getattr(error, 'strerror', None) or 'out of memory'
            report(f'cannot serve ({reason}): trying again')
            time.sleep(RETRY_DELAY)


def start_timer():
    """Interrupt blocking calls every 0.5 s: so a signal just before one is seen in time."""
    if os.name == 'posix':
        signal.signal(signal.SIGALRM, on_timer)
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)


def on_stop_signal(signum, frame):
    """Raise KeyboardInterrupt at the first signal. Ignore later ones."""
    global stop_time
    if not stop_time:
        stop_time = time.monotonic()
        start_timer()       # the full 0.5 s until on_timer raises it again
        sys.unraisablehook = lambda *_: None    # Python would print the exception that it drops
        raise KeyboardInterrupt


def on_timer(signum, frame):
    """Raise KeyboardInterrupt again: Python drops it inside the callback of a weak reference."""
    if stop_time and time.monotonic() - stop_time > 0.4:    # not a tick just after the signal
        raise KeyboardInterrupt


def finish(clean_up):
    """Clean up, print `stopped`, and exit without waiting for threads: they may be blocked."""
    global stop_time
    for number in STOP_SIGNALS:     # not SIG_IGN: Python prints an error if one is pending
        signal.signal(number, lambda *_: None)
    stop_time = 0           # the timer must not interrupt the clean-up
    clean_up()
    try:
        stop_time = 1       # but it interrupts this: nobody may read the last line
        print_line('stopped')
        stop_time = 0
    except KeyboardInterrupt:
        pass
    os._exit(0)


def start(main):
    """Call MAIN. If it fails before the server listens, say why in one line (status 1)."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(1)
    except OSError as error:
        sys.exit(f'cannot start: {error.strerror or error}')


if __name__ == '__main__':
    start(main)

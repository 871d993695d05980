"""Asynchronous I/O (section 4 of the notes).

    process   |submit|---- goes on: computes, other clients ----|look|  answer
    kernel           |-- waits for the data --|-- copying --|in place|

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
"""
import argparse
import errno
import os
import signal
import socket
import struct
import sys
import time
import types

PORT = 8084             # our own; the notes have no listing for this model
BUFSIZE = 32768         # bytes that one recv takes at most
RETRY_DELAY = 0.1       # seconds until the next try after accept has failed
answer = None           # turns a client's bytes into the answer; see choose_answer
delay = 0               # seconds to wait before each answer; --delay changes it
loop = None             # an IoUringLoop or an AsyncioLoop
no_io_uring = None      # why --engine auto did not choose it


# ---- the model

async def communicate(conn):
    """Talk with one client until it leaves. At each await the process goes on with others."""
    with conn:
        try:
            while True:
                data = await loop.sock_recv(conn, BUFSIZE)      # resumed when data is in place
                if not data:
                    break
                if delay:
                    await wait(conn)
                await loop.sock_sendall(conn, answer(conn, data))   # resumed when all is taken
                del data            # a silent client keeps no message in memory
        except (OSError, MemoryError):
            pass    # connection lost, or no memory: only this conversation ends


async def wait(conn):
    await loop.sleep(delay)     # holds up nobody; time.sleep would hold up everybody


async def accept(listener):
    """Start a conversation with each client that connects."""
    while True:
        conversation = None
        try:
            conn, addr = await loop.sock_accept(listener)
            conversation = communicate(conn)
            loop.create_task(conversation)
        except ConnectionError:         # the client left before we accepted it
            pass
        except (OSError, MemoryError) as error:
            if conversation:            # there was no memory to start it
                conversation.close()
                conn.close()
            report_accept_error(error)
            await loop.sleep(RETRY_DELAY)


def serve(listener):
    """Run the loop that --engine has chosen."""
    if no_io_uring:
        print_line(f'no io_uring: {no_io_uring}', sys.stderr)
    loop.run_until_complete(accept(listener))


class AsyncioLoop:
    """asyncio's own loop: on Windows completion (IOCP), elsewhere readiness (a selector).

    Its sock_recv and sock_accept do not pause while there is something to take: so first the others
    have a turn. It saves CPU too: then the next message is mostly there, and nothing waits for it.
    """

    def run_until_complete(self, coroutine):
        asyncio.run(self.run(coroutine))    # closes the loop, however it ends

    async def run(self, coroutine):
        self.loop = asyncio.get_running_loop()
        self.create_task, self.sleep = self.loop.create_task, asyncio.sleep
        await coroutine

    async def sock_accept(self, listener):
        listener.setblocking(False)         # asyncio expects it
        await asyncio.sleep(0)
        return await self.loop.sock_accept(listener)

    async def sock_recv(self, conn, size):
        await asyncio.sleep(0)
        return await self.loop.sock_recv(conn, size)

    def sock_sendall(self, conn, data):
        return self.loop.sock_sendall(conn, data)


# ---- io_uring: class IoUringLoop, open_io_uring; names and numbers are <linux/io_uring.h>'s

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427  # <asm/unistd.h>
IORING_SETUP_CQSIZE, IORING_OFF_SQES, IORING_ENTER_GETEVENTS = 1 << 3, 0x10000000, 1 << 0
IORING_SETUP_COOP_TASKRUN, IORING_REGISTER_PBUF_RING = 1 << 8, 22       # Linux 5.19
IORING_SETUP_SINGLE_ISSUER = 1 << 12                                    # Linux 6.0
IORING_OP_TIMEOUT, IORING_OP_ACCEPT, IORING_OP_SEND, IORING_OP_RECV = 11, 13, 26, 27
IOSQE_BUFFER_SELECT, IORING_CQE_F_BUFFER, IORING_CQE_BUFFER_SHIFT = 1 << 5, 1 << 0, 16
io_uring_sqe = struct.Struct('BBxxi8xQI4xQ24x')     # opcode, flags, fd, addr, len, user_data
io_uring_cqe = struct.Struct('QiI')                 # user_data, res, flags
io_uring_buf = struct.Struct('QIHxx')               # addr, len, bid
SQ_ENTRIES, CQ_ENTRIES, BUFFERS = 1024, 4096, 1024      # powers of two
FIRST_BUFFERS = 64      # at the start; others when needed: untouched memory costs nothing
STRIDE = BUFSIZE + 64   # with a power of two, all buffers would begin in the same cache sets
HEADER = getattr(bytes, '__basicsize__', 1) - 1    # CPython: where the bytes begin, from id()


class IoUringLoop:
    """An event loop on io_uring, with the few methods of asyncio's loops that we need.

    The process and the kernel share two queues in memory. We write what the coroutines ask for to
    one, and io_uring_enter hands it over. The kernel writes what it has done to the other. `yield`
    waits for that: user_data (the number of the task), res, flags. Whoever is resumed first says
    who it is (current_task): so what it asks for next has its number too.

    Without IORING_SETUP_DEFER_TASKRUN the kernel writes at any time, also while Python computes:
    normally in the thread that has submitted, on its way back from an interrupt or any system call
    ("task work", io_uring_setup(2)). So nobody else writes what we read: no memory barriers.

    No memory is freed while the kernel may still use it: the buffers for recv live as long as the
    loop, and a coroutine that waits for a send holds its bytes. When the process ends, the kernel
    cancels what is in flight on a thread of its own: with thousands of connections the port is free
    0.1 s later. Raises OSError where the kernel refuses.
    """

    def __init__(self):
        self.syscall = ctypes.PyDLL(None, use_errno=True).syscall   # PyDLL keeps the GIL
        self.syscall.argtypes, self.syscall.restype = [ctypes.c_long] * 7, ctypes.c_long
        params = (ctypes.c_uint32 * 30)()   # io_uring_params; sq_off from 10, cq_off from 20
        params[1] = CQ_ENTRIES
        params[2] = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN
        self.fd = self.checked_syscall(IO_URING_SETUP, SQ_ENTRIES, ctypes.addressof(params))
        self.sq_head, self.sq_tail, array = params[10] // 4, params[11] // 4, params[16] // 4
        self.cq_head, self.cq_tail, self.cqes = params[20] // 4, params[21] // 4, params[25]
        size = max(4 * (array + SQ_ENTRIES), self.cqes + io_uring_cqe.size * CQ_ENTRIES)
        self.rings = mmap.mmap(self.fd, size)
        self.ring_u32 = memoryview(self.rings).cast('I')    # so indices are bytes // 4, cqes apart
        for slot in range(SQ_ENTRIES):      # the kernel looks here which entry is next
            self.ring_u32[array + slot] = slot
        self.sqes = mmap.mmap(self.fd, SQ_ENTRIES * io_uring_sqe.size, offset=IORING_OFF_SQES)
        self.queue = []         # what the next call submits
        self.tasks = {}         # user_data: the `send` of the coroutine that waits for it
        self.current_task = self.created = 0    # the number of the task that runs, of the last
        self.tail = self.head = 0       # where we write submissions, and read completions
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
        self.checked_syscall(
            IO_URING_REGISTER, self.fd, IORING_REGISTER_PBUF_RING, id(io_uring_buf_reg) + HEADER, 1)

    @types.coroutine
    def sock_accept(self, listener):
        self.queue.append(io_uring_sqe.pack(
            IORING_OP_ACCEPT, 0, listener.fileno(), 0, 0, self.current_task))
        self.current_task, res, _ = yield
        if res < 0:
            raise OSError(-res, os.strerror(-res))
        try:
            conn = socket.socket(listener.family, listener.type, listener.proto, fileno=res)
        except MemoryError:
            os.close(res)
            raise
        conn.set_inheritable(False)     # as Python's own accept does (PEP 446)
        try:
            return conn, conn.getpeername()
        except OSError:                 # the client has left already: recv will say so
            return conn, None

    @types.coroutine
    def sock_recv(self, conn, size):
        while True:
            self.queue.append(io_uring_sqe.pack(
                IORING_OP_RECV, IOSQE_BUFFER_SELECT, conn.fileno(), 0, size, self.current_task))
            self.current_task, res, flags = yield
            bid = flags >> IORING_CQE_BUFFER_SHIFT
            if flags & IORING_CQE_F_BUFFER:     # the kernel has used this one: give it back soon
                self.to_return.append(self.buffer[bid])
            if res >= 0:        # in place; a bytes object of it is Python's own copy
                return self.buffers[bid * STRIDE:bid * STRIDE + res]
            if res != -errno.ENOBUFS:
                raise OSError(-res, os.strerror(-res))
            if self.reserve:    # no buffer was left: provide one more, and ask again
                self.to_return.append(self.reserve[-1])
                self.reserve.pop()

    @types.coroutine
    def sock_sendall(self, conn, data):
        while True:
            self.queue.append(io_uring_sqe.pack(
                IORING_OP_SEND, 0, conn.fileno(), id(data) + HEADER, len(data), self.current_task))
            self.current_task, res, _ = yield
            if res == len(data):
                return
            if res < 0:
                raise OSError(-res, os.strerror(-res))
            data = data[res:]       # the kernel took only a part

    @types.coroutine
    def sleep(self, seconds):
        timespec = struct.pack('qq', int(seconds), int(seconds % 1 * 1e9))
        self.queue.append(io_uring_sqe.pack(
            IORING_OP_TIMEOUT, 0, -1, id(timespec) + HEADER, 1, self.current_task))
        self.current_task, _, _ = yield

    def create_task(self, coroutine):
        """Run COROUTINE up to its first await. The completion of that operation resumes it."""
        caller, number = self.current_task, self.created + 1
        self.tasks[number] = coroutine.send     # first: there may be no memory for it
        self.current_task = self.created = number
        try:
            coroutine.send(None)
        except StopIteration:       # it has ended before its first await
            del self.tasks[number]
        finally:
            self.current_task = caller

    def run_until_complete(self, coroutine):
        """Resume COROUTINE, and those that it creates, as their operations complete."""
        self.create_task(coroutine)
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
            first = -self.buffer_tail % BUFFERS     # the entry for slot 0. Its last bytes are the
            if first < len(self.to_return):         # tail: the kernel may look before we move it
                tail = struct.pack('H', self.buffer_tail)
                self.to_return[first] = self.to_return[first][:-2] + tail
            copy_to_ring(self.buffer_ring, io_uring_buf.size, self.buffer_tail, self.to_return)
            self.buffer_tail = (self.buffer_tail + len(self.to_return)) & 0xffff
            self.buffer_u16[7] = self.buffer_tail
            self.to_return.clear()
        not_taken = (self.tail - self.ring_u32[self.sq_head]) & 0xffffffff     # last time
        batch = self.queue[:SQ_ENTRIES - not_taken]
        del self.queue[:SQ_ENTRIES - not_taken]
        copy_to_ring(self.sqes, io_uring_sqe.size, self.tail, batch)
        self.ring_u32[self.sq_tail] = self.tail = (self.tail + len(batch)) & 0xffffffff
        try:
            self.checked_syscall(IO_URING_ENTER, self.fd, not_taken + len(batch),
                                 wait and not self.queue, IORING_ENTER_GETEVENTS)
        except OSError as error:    # a signal, or the completion queue is full: read it first
            if error.errno not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
                raise

    def completions(self):
        """Return (user_data, res, flags) of what the kernel has completed since last time."""
        head, tail = self.head, self.ring_u32[self.cq_tail]
        first = self.cqes + head % CQ_ENTRIES * io_uring_cqe.size
        last = self.cqes + tail % CQ_ENTRIES * io_uring_cqe.size
        completed = self.rings[first:last]
        if head != tail and first >= last:      # after the last slot comes the first one
            end = self.cqes + CQ_ENTRIES * io_uring_cqe.size
            completed = self.rings[first:end] + self.rings[self.cqes:last]
        self.ring_u32[self.cq_head] = self.head = tail      # now the kernel may reuse the slots
        return io_uring_cqe.iter_unpack(completed)

    def checked_syscall(self, number, first, second, third=0, fourth=0):
        result = self.syscall(number, first, second, third, fourth, 0, 0)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result


def copy_to_ring(ring, size, tail, entries):
    """Copy ENTRIES of SIZE bytes into a RING from slot TAIL on. After its last comes its first."""
    data, start = b''.join(entries), tail * size % len(ring)
    end = start + len(data)
    if end > len(ring):
        ring[:end - len(ring)] = data[len(ring) - end:]
        data, end = data[:len(ring) - end], len(ring)
    ring[start:end] = data


def open_io_uring(loop_class):
    """Return a LOOP_CLASS and None, or None and why io_uring cannot be used."""
    global ctypes, mmap
    if sys.implementation.name != 'cpython' or not sys.platform.startswith('linux'):
        return None, 'it needs CPython and Linux'
    try:
        import ctypes
        import mmap
        return loop_class(), None
    except (ImportError, OSError) as error:
        reasons = {errno.EPERM: 'refused, by a container or by sysctl kernel.io_uring_disabled',
                   errno.ENOSYS: 'this kernel has none, or a container hides it',
                   errno.EINVAL: 'needs Linux 6.0 or later',
                   errno.ENOMEM: 'too little locked memory is allowed (ulimit -l)'}
        return None, reasons.get(getattr(error, 'errno', None), why(error))


# ---- start

def open_listener(family, address):
    """Return a listening socket and its address: the first steps of the notes' servers."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == 'posix':      # restart at once; on Windows two servers could share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # an answer leaves at once, not held back to fill a packet; accepted sockets inherit this
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(max(socket.SOMAXCONN, 4096))    # with the notes' 5, a burst waits seconds
        return listener, format_address(listener.getsockname())
    except OSError:
        listener.close()
        raise


def main():
    global asyncio, answer, delay, loop, wait, no_io_uring
    parser = arguments()
    parser.add_argument('--engine', default='auto', choices=['auto', 'io_uring', 'asyncio'],
                        help='auto: io_uring where the kernel permits it, otherwise asyncio')
    args = parser.parse_args()
    delay, args.delay = args.delay, 0       # communicate awaits it
    answer = choose_answer(args)
    if args.trace:
        wait = traced_wait
        socket.socket = type('NumberedSocket', (socket.socket,), {'number': 0})     # of each conn
    if args.engine != 'asyncio':
        loop, no_io_uring = open_io_uring(TracedIoUringLoop if args.trace else IoUringLoop)
    if loop:
        model = 'io_uring: completion'
        loop.eager = args.work > 0  # submit before each answer, so that a slow one delays no read
    elif args.engine == 'io_uring':
        sys.exit(f'io_uring is not available: {no_io_uring}; use --engine asyncio')
    else:
        import asyncio      # slow, so it is not at the top
        loop = TracedAsyncioLoop() if args.trace else AsyncioLoop()
        model = 'asyncio on ' + ('IOCP: completion' if os.name == 'nt' else 'a selector: readiness')
    run(serve, model, args)


# ---- --trace

async def traced_wait(conn):        # with --trace, replaces wait
    trace(conn.number, 'answer', f'waits {delay:g} s ...')
    start = time.perf_counter()
    await loop.sleep(delay)
    trace(conn.number, 'answer', f'awaited {elapsed(start)}; the process went on meanwhile')


class TraceMixIn:
    """With --trace: a line when an operation starts, and when it ends."""
    started = 'queued'
    ended = {'recv': ('in place, seen after', ''), 'sendall': ('taken, seen after', '')}
    count = 0       # connections

    async def sock_accept(self, listener):
        conn, addr = await super().sock_accept(listener)
        self.count = conn.number = self.count + 1
        trace(conn.number, 'accept', f'{format_address(addr)} joined')
        return conn, addr

    async def sock_recv(self, conn, size):
        return await self.traced_call(conn, 'recv', super().sock_recv(conn, size))

    async def sock_sendall(self, conn, data):
        await self.traced_call(conn, 'sendall', super().sock_sendall(conn, data), data)

    @types.coroutine
    def traced_call(self, conn, call, operation, data=None):
        """Do what `await operation` does, and look at the clock at each step."""
        start = time.perf_counter()
        try:
            awaited = operation.send(None)
            trace(conn.number, call, f'{self.started} in {elapsed(start)}; the process goes on')
            while True:
                awaited = operation.send((yield awaited))
        except StopIteration as end:
            result = end.value
        except OSError as error:
            trace(conn.number, call, f'ended after {elapsed(start)}: {why(error)}')
            raise
        before, after = self.ended[call]
        trace(conn.number, call, f'{before} {elapsed(start)}{after}: ', data or result)
        return result


class TracedAsyncioLoop(TraceMixIn, AsyncioLoop):
    started = 'asked' if os.name == 'posix' else 'submitted'
    if os.name == 'posix':
        ended = {'recv': ('ready after', ', copied'), 'sendall': ('taken after', '')}


class TracedIoUringLoop(TraceMixIn, IoUringLoop):       # each look, too: was a call needed?
    known = 0       # unread completions that a line has named

    def submit(self, wait=False):
        self.look()
        if wait:
            trace(None, 'enter', 'blocks ...')
        start = time.perf_counter()
        super().submit(wait)
        self.known = self.unread()
        if wait:
            trace(None, 'enter', f'waited {elapsed(start)}, then {self.known} completed')

    def completions(self):
        self.look()
        self.known = 0
        return super().completions()

    def look(self):
        """Print what has completed since our last system call."""
        count = self.unread() - self.known
        self.known += count
        if count:
            trace(None, 'look', f'{count} completed meanwhile, without io_uring_enter')

    def unread(self):
        return (self.ring_u32[self.cq_tail] - self.head) & 0xffffffff


# ---- the same in every server
START_TIME = time.perf_counter()
reported = set()        # the reasons why accept has failed so far


def report_accept_error(error):
    """Say why no client can be accepted now, once for each reason (mostly: no descriptors)."""
    if why(error) not in reported:
        reported.add(why(error))
        print_line(f'cannot accept ({why(error)}): new clients wait; others are served', sys.stderr)


def why(error):
    """Return what went wrong, in words. (A MemoryError has none of its own.)"""
    return getattr(error, 'strerror', None) or str(error) or 'out of memory'


def choose_answer(args):
    """Return the function that turns a client's bytes into the answer."""
    def upper(conn, data):
        if args.delay:
            spend(conn, time.sleep, args.delay, 'waits', 'waited')
        if args.work:
            spend(conn, compute, args.work, 'computes', f'computed {args.work:g} s of CPU in')
        return data.upper()

    def spend(conn, function, seconds, begins, ended):
        start = time.perf_counter()
        if args.trace:
            trace(conn.number, 'answer', f'{begins} {seconds:g} s ...')
        function(seconds)
        if args.trace:
            trace(conn.number, 'answer', f'{ended} {elapsed(start)}')
    return upper


def compute(seconds):
    """Use SECONDS of CPU time. This holds the GIL: threads that compute take turns."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(2000))    # reading the clock is a system call: do it rarely


def trace(number, call, words, data=None):
    """Print a line of at most 80 columns: time since the start, connection, call, its phases."""
    if data is not None:
        size = '1 byte' if len(data) == 1 else f'{len(data)} bytes'
        words += f'{size} {data[:60]!r}' if data else "b'': the client closed"
    who = f'#{number}' if number else '-'
    line = f'{time.perf_counter() - START_TIME:8.3f} s  {who:<4} {call:<8} {words}'
    print_line(line if len(line) <= 80 else line[:77] + '...', sys.stderr)


def elapsed(start):
    """Return the time since START (time.perf_counter) in words, in the unit that fits."""
    seconds = time.perf_counter() - start
    if seconds < 0.001:
        return f'{seconds * 1e6:.0f} us'
    return f'{seconds:.3f} s' if seconds >= 1 else f'{seconds * 1e3:.1f} ms'


def print_line(line, stream):
    """Write LINE at once, if there is a reader: the server goes on without one."""
    try:
        stream.write(line + '\n')
    except (OSError, AttributeError):   # `| head -1` has ended; None: closed when we started
        pass


def format_address(address):
    """Return ADDRESS as people write it: 127.0.0.1:8080, [::1]:8080 or [fe80::1%lo]:8080."""
    if not address:     # macOS gives none if the client has left already
        return 'an unknown address'
    host, port = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


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
    add('--host', default='127.0.0.1', help='address to listen on (%(default)s; ::1 for IPv6)')
    add('--port', default=PORT, type=number_between(int, 0, 65535),
        help='port to listen on (%(default)s; 0 takes a free one)')
    add('--delay', help='wait this long before each answer, as for a database', **seconds)
    add('--work', help='spend this much CPU time on each answer', **seconds)
    add('--trace', action='store_true', help='print each I/O call and its phases')
    return parser


def run(serve, model, args):
    """Listen, say so, and serve. If we cannot listen, exit with status 1 and the reason."""
    try:
        found = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)[0]
        listener, address = open_listener(family=found[0], address=found[4])
    except (OSError, ValueError) as error:  # ValueError: the host's name, or our descriptor
        sys.exit(f'cannot listen on host {args.host!a}, port {args.port}: {why(error)}')
    print_line(f'listening on {address} ({model}; Ctrl-C stops)', sys.stdout)
    serve(listener)


def start(main):
    """Call MAIN. If it fails, say why in one line (status 1). Ctrl-C ends the process at once."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:   # as it is after & in a shell script
        signal.signal(signal.SIGINT, signal.SIG_DFL)    # the kernel's: there is nothing to save
    for stream in sys.stdin, sys.stdout, sys.stderr:
        if hasattr(stream, 'reconfigure'):  # what a console cannot show is escaped, not an error
            stream.reconfigure(errors='backslashreplace', line_buffering=True)
    try:
        main()
    except (OSError, MemoryError) as error:     # anything else is a bug, and keeps its traceback
        sys.exit(f'cannot go on: {why(error)}')


if __name__ == '__main__':
    start(main)

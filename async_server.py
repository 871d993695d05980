"""Asynchronous I/O (section 4 of the notes): hand the read over, go on, be told when the bytes are in place.

    process   |submitted|----- went on: other clients, other work ------|completed, in place|  answer
    kernel              |---- wait for the data ----|-- copy the data --|

select and epoll say when recv would not wait (readiness); the copy is still the process's own call. Here the kernel
does both phases, and says when both are done (completion): io_uring on Linux 6.1 and later, which this script drives
by itself, and IOCP on Windows, through asyncio. On Linux and macOS asyncio is not that: under its `await` works the
multiplexing of section 3. The conversation is written once and runs on each of these engines.

Run it:  python async_server.py --trace      Talk to it:  python client.py --port 8084
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
MOMENT = 0.1            # seconds until we try again when there was no room for another client
answer = bytes.upper    # what a client gets for its bytes; --work puts a slow one here


async def communicate(loop, conn):
    """Talk with one client until it leaves. At each await the process goes on with the others."""
    with conn:
        try:
            while True:
                data = await loop.sock_recv(conn, BUFSIZE)      # goes on when the bytes are in place
                if not data:
                    break
                await loop.sock_sendall(conn, answer(data))     # goes on when the kernel has taken them all
        except OSError:
            pass    # reset, or vanished: that costs this conversation only


async def accept(loop, server, sleep):
    """Begin a conversation with everybody who connects."""
    while True:
        try:
            conn, addr = await loop.sock_accept(server)
            loop.create_task(communicate(loop, conn))
        except OSError as error:    # any other error is of a client that has gone before we came
            if error.errno in NO_ROOM:
                say_full(error)
                await sleep(MOMENT)


def serve_io_uring(server):
    """The loop is the Ring below."""
    ring.run(accept(traced(ring, 'submitted in {}, went on; completed after {}, in place: '), server, ring.sleep))


def serve_asyncio(server):
    """The loop is asyncio's own: on Windows IOCP, elsewhere a selector."""
    server.setblocking(False)
    loop = asyncio.new_event_loop()
    words = 'submitted in {}, went on; completed after {}, in place: '
    if os.name == 'posix':
        words = 'asked in {}, went on; ready after {}, then copied: '
    loop.run_until_complete(accept(traced(loop, words), server, asyncio.sleep))


# ---- io_uring. The names and numbers are those of <linux/io_uring.h> ----

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427       # system calls
IORING_SETUP_CQSIZE, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN = 1 << 3, 1 << 12, 1 << 13      # Linux 6.1
IORING_OFF_SQES = 0x10000000
IORING_ENTER_GETEVENTS = 1 << 0
IORING_REGISTER_PBUF_RING, IORING_REGISTER_SYNC_CANCEL = 22, 24
IORING_ASYNC_CANCEL_ALL, IORING_ASYNC_CANCEL_ANY = 1 << 0, 1 << 2
IORING_OP_TIMEOUT, IORING_OP_ACCEPT, IORING_OP_SEND, IORING_OP_RECV = 11, 13, 26, 27
IOSQE_BUFFER_SELECT = 1 << 5
IORING_CQE_F_BUFFER, IORING_CQE_BUFFER_SHIFT = 1 << 0, 16
io_uring_sqe = struct.Struct('BBxxi8xQI4xQ24x')     # opcode, flags, fd, addr, len, user_data
io_uring_cqe = struct.Struct('QiI')                 # user_data, res, flags
io_uring_buf = struct.Struct('QIHxx')               # addr, len, bid
SQ_ENTRIES, CQ_ENTRIES, BUFFERS = 1024, 4096, 1024      # powers of two
STRIDE = BUFSIZE + 64                   # a power of two apart, all buffers would begin in the same few sets of the cache
HEADER = bytes.__basicsize__ - 1        # where the bytes begin in a bytes object of CPython, counted from its id


class Ring:
    """An event loop on io_uring, with those four methods of asyncio's loops that the conversation needs.

    The process and the kernel share two rings. What the coroutines ask for goes to the tail of the submission queue,
    what the kernel has done is at the tail of the completion queue, and one system call a round submits and waits.
    With DEFER_TASKRUN the kernel writes completions only inside that call: nothing changes while Python reads them.

    No memory goes while the kernel may use it: the buffers for recv live as long as the ring, the bytes of a send in
    the coroutine that waits for its completion (`tasks` holds it until then), and `close` waits for what is in flight.
    Raises OSError where the kernel refuses.
    """

    def __init__(self):
        self.syscall = ctypes.PyDLL(None, use_errno=True).syscall   # PyDLL: no other thread needs the GIL meanwhile
        self.syscall.argtypes, self.syscall.restype = [ctypes.c_long] * 7, ctypes.c_long
        params = (ctypes.c_uint32 * 30)()       # struct io_uring_params; from 10 on sq_off, from 20 on cq_off
        params[1] = CQ_ENTRIES
        params[2] = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
        self.fd = self.call(IO_URING_SETUP, SQ_ENTRIES, ctypes.addressof(params))
        self.sq_head, self.sq_tail, array = params[10] // 4, params[11] // 4, params[16] // 4
        self.cq_head, self.cq_tail, self.cqes = params[20] // 4, params[21] // 4, params[25]
        self.rings = mmap.mmap(self.fd, max(4 * (array + SQ_ENTRIES), self.cqes + io_uring_cqe.size * CQ_ENTRIES))
        self.words = memoryview(self.rings).cast('I')
        for slot in range(SQ_ENTRIES):      # the kernel reads from this array which entry is next: slot n is entry n
            self.words[array + slot] = slot
        self.sqes = mmap.mmap(self.fd, SQ_ENTRIES * io_uring_sqe.size, offset=IORING_OFF_SQES)
        self.queue = []         # what the next round submits
        self.tasks = {}         # user_data of an entry: the `send` of the coroutine that waits for its completion
        self.tail = self.head = 0       # of the submission queue where we write, of the completion queue where we read
        self.current = self.created = 0
        self.provide_buffers()

    def provide_buffers(self):
        """Make a ring of buffers, as yet empty. The kernel takes one when data comes, so that idle clients need none."""
        self.buffers = mmap.mmap(-1, BUFFERS * STRIDE)
        self.buffer_ring = mmap.mmap(-1, BUFFERS * io_uring_buf.size)
        self.buffer_words = memoryview(self.buffer_ring).cast('H')
        first, ring = (ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (self.buffers, self.buffer_ring))
        self.buffer = [io_uring_buf.pack(first + bid * STRIDE, BUFSIZE, bid) for bid in range(BUFFERS)]
        self.spare, self.unused, self.buffer_tail = self.buffer[:], [], 0
        self.register(IORING_REGISTER_PBUF_RING, struct.pack('QI28x', ring, BUFFERS))       # struct io_uring_buf_reg

    @types.coroutine
    def sock_accept(self, server):
        self.queue.append(io_uring_sqe.pack(IORING_OP_ACCEPT, 0, server.fileno(), 0, 0, self.current))
        self.current, res, _ = yield    # the completion: whose it is, what came of it, flags
        if res < 0:
            raise OSError(-res, os.strerror(-res))
        conn = socket.socket(server.family, server.type, server.proto, fileno=res)
        conn.set_inheritable(False)     # as Python's own accept does (PEP 446)
        try:
            return conn, conn.getpeername()
        except OSError:             # it has reset already
            return conn, ('?', 0)

    @types.coroutine
    def sock_recv(self, conn, size):
        while True:
            self.queue.append(io_uring_sqe.pack(IORING_OP_RECV, IOSQE_BUFFER_SELECT, conn.fileno(), 0, size, self.current))
            self.current, res, flags = yield
            if res > 0:
                bid = flags >> IORING_CQE_BUFFER_SHIFT
                self.unused.append(self.buffer[bid])    # the kernel gets it back in the next round; it is copied now
                start = bid * STRIDE
                return self.buffers[start:start + res]
            if flags & IORING_CQE_F_BUFFER:     # it had taken one all the same
                self.unused.append(self.buffer[flags >> IORING_CQE_BUFFER_SHIFT])
            if res == 0:
                return b''
            if res != -errno.ENOBUFS:
                raise OSError(-res, os.strerror(-res))
            if self.spare:      # there was no buffer left: one more, and ask again
                self.unused.append(self.spare.pop())

    @types.coroutine
    def sock_sendall(self, conn, data):
        while True:
            self.queue.append(io_uring_sqe.pack(IORING_OP_SEND, 0, conn.fileno(), id(data) + HEADER, len(data),
                                                self.current))
            self.current, res, _ = yield
            if res == len(data):
                return
            if res < 0:
                raise OSError(-res, os.strerror(-res))
            data = data[res:]       # the kernel took less than all

    @types.coroutine
    def sleep(self, seconds):
        timespec = struct.pack('qq', int(seconds), int(seconds % 1 * 1e9))
        self.queue.append(io_uring_sqe.pack(IORING_OP_TIMEOUT, 0, -1, id(timespec) + HEADER, 1, self.current))
        self.current, _, _ = yield

    def create_task(self, coroutine):
        """Run COROUTINE up to its first await; its completion will resume it."""
        caller, self.current = self.current, self.created
        self.created += 1
        self.tasks[self.current] = coroutine.send
        coroutine.send(None)
        self.current = caller

    def run(self, coroutine):
        """Run COROUTINE and the tasks that it creates, until an exception such as KeyboardInterrupt ends it."""
        tasks = self.tasks
        try:
            self.create_task(coroutine)
            while True:
                self.enter()
                for completion in self.completions():
                    try:
                        tasks[completion[0]](completion)
                    except StopIteration:
                        del tasks[completion[0]]
        finally:
            self.close()

    def enter(self):
        """One system call: submit what the coroutines have asked for, and wait until something is completed."""
        if self.unused:
            put(self.buffer_ring, io_uring_buf.size, self.buffer_tail, self.unused)
            self.buffer_tail = (self.buffer_tail + len(self.unused)) & 0xffff
            self.buffer_words[7] = self.buffer_tail     # struct io_uring_buf_ring: it lies in the first entry's last bytes
            self.unused.clear()
        waiting = (self.tail - self.words[self.sq_head]) & 0xffffffff     # the kernel did not take these last time
        batch = self.queue[:SQ_ENTRIES - waiting]
        del self.queue[:SQ_ENTRIES - waiting]           # with more than the queue holds, the next round comes at once
        put(self.sqes, io_uring_sqe.size, self.tail, batch)
        self.words[self.sq_tail] = self.tail = (self.tail + len(batch)) & 0xffffffff
        try:
            self.call(IO_URING_ENTER, self.fd, waiting + len(batch), not self.queue, IORING_ENTER_GETEVENTS)
        except OSError as error:        # a signal came, or the kernel has no room before we have read the completions
            if error.errno not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
                raise

    def completions(self):
        """Return what the kernel has completed since the last time: (user_data, res, flags) of each."""
        head, tail = self.head, self.words[self.cq_tail]
        self.words[self.cq_head] = self.head = tail
        first = self.cqes + head % CQ_ENTRIES * io_uring_cqe.size
        last = self.cqes + tail % CQ_ENTRIES * io_uring_cqe.size
        if first < last or head == tail:
            return io_uring_cqe.iter_unpack(self.rings[first:last])
        end = self.cqes + CQ_ENTRIES * io_uring_cqe.size
        return io_uring_cqe.iter_unpack(self.rings[first:end] + self.rings[self.cqes:last])

    def close(self):
        """Cancel what is in flight and wait until the kernel has let go of it: each submission has one completion."""
        words = self.words
        for task in self.tasks:         # one by one: the kernel finds each at once
            self.cancel(task, 0)
        while words[self.sq_head] != words[self.cq_tail]:       # taken in by the kernel, and completed, since the start
            words[self.cq_head] = words[self.cq_tail]
            left = min((words[self.sq_head] - words[self.cq_tail]) & 0xffffffff, CQ_ENTRIES)
            try:
                self.call(IO_URING_ENTER, self.fd, 0, left, IORING_ENTER_GETEVENTS)
            except InterruptedError:    # by the timer of `run`: should one be left, look for it in the slow way
                self.cancel(0, IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY)

    def cancel(self, task, flags):
        try:        # struct io_uring_sync_cancel_reg: addr, fd, flags, timeout (none)
            self.register(IORING_REGISTER_SYNC_CANCEL, struct.pack('QiIqq32x', task, -1, flags, -1, -1))
        except OSError:
            pass    # it has been completed already

    def register(self, opcode, argument):
        self.call(IO_URING_REGISTER, self.fd, opcode, id(argument) + HEADER, 1)

    def call(self, number, first, second, third=0, fourth=0):
        result = self.syscall(number, first, second, third, fourth, 0, 0)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result


def put(ring, size, tail, entries):
    """Copy ENTRIES of SIZE bytes into the memory of a RING, from slot TAIL on; after its last slot comes its first."""
    data, start = b''.join(entries), tail * size % len(ring)
    end = start + len(data)
    if end > len(ring):
        ring[:end - len(ring)] = data[len(ring) - end:]
        data, end = data[:len(ring) - end], len(ring)
    ring[start:end] = data


def open_ring():
    """Return a Ring; raises OSError, with the reason in words, where there cannot be one."""
    global ctypes, mmap
    if not sys.platform.startswith('linux') or sys.implementation.name != 'cpython':
        raise OSError('it needs Linux and CPython')
    try:
        import ctypes
        import mmap
        return Ring()
    except ImportError as error:
        raise OSError(f'{error}')
    except OSError as error:
        reasons = {errno.EPERM: 'refused, by a container or by the sysctl kernel.io_uring_disabled',
                   errno.ENOSYS: 'this kernel has none, or a container hides it', errno.EINVAL: 'needs Linux 6.1 or later'}
        raise OSError(reasons.get(error.errno, error.strerror))


class TracedLoop:
    """What --trace puts before a loop: it draws each operation, from handing it over to its end."""

    def __init__(self, loop, words):
        self.loop, self.words, self.create_task = loop, words, loop.create_task
        self.numbers, self.joined = {}, 0       # the connections by their descriptors, and how many there were

    async def sock_accept(self, server):
        conn, addr = await self.drawn(server, 'accept', self.loop.sock_accept(server))
        self.joined += 1
        self.numbers[conn.fileno()] = self.joined
        draw(self.joined, 'accept', f'{name(addr)} joined')
        return conn, addr

    async def sock_recv(self, conn, size):
        return await self.drawn(conn, 'recv', self.loop.sock_recv(conn, size))

    async def sock_sendall(self, conn, data):
        await self.drawn(conn, 'sendall', self.loop.sock_sendall(conn, data), data)

    @types.coroutine
    def drawn(self, sock, call, operation, data=None):
        """Do what `await operation` does, with a look at the clock at each step."""
        number, start, submitted = self.numbers.get(sock.fileno()), time.perf_counter(), None
        try:
            awaited = operation.send(None)
            submitted = since(start)
            while True:
                awaited = operation.send((yield awaited))
        except StopIteration as end:
            result = end.value
        except OSError as error:
            draw(number, call, f'ended after {since(start)}: {error.strerror}' + ': it has left' * (call != 'accept'))
            raise
        if call != 'accept':
            words = self.words.format(submitted, since(start)) if submitted else f'done at once, in {since(start)}: '
            draw(number, call, words, data or result)
        return result


# ---- from here to the end of `run`: what every server has, the same to the letter ----

STOPPERS = [getattr(signal, each) for each in ('SIGINT', 'SIGTERM', 'SIGBREAK') if hasattr(signal, each)]
NO_ROOM = errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM      # accept(2)
START = time.perf_counter()
Socket = socket.socket      # --trace puts TracedSocket here, where a script has one
full_since = -10            # when we last said that there is no room


def draw(number, call, phases, data=None):
    """Write one line of the trace: seconds since the start, connection, call, what its phases took, what came."""
    if data is not None:
        phases += f'{len(data)} bytes  {data[:24]!r}{"..." * (len(data) > 24)}' if data else 'the end: it has left'
    who = f'#{number}' if number else '-'
    say(f'{time.perf_counter() - START:9.3f} s  {who:<5} {call:<9} {phases}', sys.stderr)


def since(start):
    """Return in words how long ago START was (a time.perf_counter()), in the unit that fits."""
    seconds = time.perf_counter() - start
    if seconds < 0.001:
        return f'{seconds * 1e6:.0f} us'
    return f'{seconds:.3f} s' if seconds >= 1 else f'{seconds * 1e3:.1f} ms'


def say(line, file=sys.stdout):
    """Print LINE at once. Nobody may be reading any more (`| head -1`, or FILE is closed): that must not stop a server."""
    try:
        if file:
            print(line, file=file, flush=True)
    except OSError:
        pass


def name(address):
    """Return the ADDRESS of a socket as people write it: 127.0.0.1:8080 or [::1]:8080."""
    return ('[{}]:{}' if ':' in address[0] else '{}:{}').format(*address)


def refuse(conn, addr, why):
    """Send one client away, so that the others can stay."""
    say(f'refused {name(addr)}: {why}', sys.stderr)
    conn.close()


def say_full(error):
    """Say that there is no room for another client: one line in ten seconds, however often we try."""
    global full_since
    if time.monotonic() - full_since >= 10:
        full_since = time.monotonic()
        say(f'no room for another client ({error.strerror}): it waits, those connected are served', sys.stderr)


def slow(seconds):
    """Return an `answer` that takes so many SECONDS to compute, like the notes' heavy response body."""
    def answer(data):
        time.sleep(seconds)
        return data.upper()
    return answer


def within(kind, low, high):
    """Return an argparse type: a number of that KIND from LOW to HIGH (so neither nan nor inf)."""
    def number(text):
        if low <= kind(text) <= high:
            return kind(text)
        raise argparse.ArgumentTypeError(f'{text} is not between {low} and {high}')
    return number


def arguments():
    """Return a parser of the arguments that every server has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--host', default='127.0.0.1', help='address to listen on (default %(default)s; ::1 for IPv6)')
    add('--port', default=PORT, type=within(int, 0, 65535), help='default %(default)s; 0 takes a free one')
    add('--work', default=0, type=within(float, 0, 86400), metavar='SECONDS', help='computing each answer takes so long')
    add('--trace', action='store_true', help='draw each I/O call and its phases on standard error')
    return parser


def stop(signum, frame):
    """Answer the first Ctrl-C or SIGTERM by KeyboardInterrupt, and ignore the next: they must not disturb the end."""
    for number in STOPPERS:
        signal.signal(number, lambda *_: None)      # with SIG_IGN Python would complain of one that has just come
    raise KeyboardInterrupt


def run(serve, server, model):
    """Say `listening`, let SERVE serve until Ctrl-C or SIGTERM, and exit with status 0."""
    try:
        for number in STOPPERS:
            signal.signal(number, stop)
        say(f'listening on {name(server.getsockname())} ({model}; Ctrl-C stops)')
        if os.name == 'posix':      # a signal just before a blocking call is seen only after it: so none lasts for long
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
            serve(server)
        else:       # on Windows Ctrl-C interrupts no blocking call: the main thread waits beside it, in short steps
            thread = threading.Thread(target=serve, args=(server,), daemon=True)
            thread.start()
            while thread.is_alive():
                thread.join(0.5)
            sys.exit(1)     # it has failed, and said why
    except KeyboardInterrupt:
        say('stopped')
        os._exit(0)     # threads may be blocked in calls that nothing ends: leave without them
    except OSError as error:
        sys.exit(f'cannot serve any longer: {error.strerror or error}')


def listen(host, port):
    """Return a socket that listens on HOST and PORT; if that cannot be, exit with status 1 and the reason."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = Socket(family, kind, proto)
        if os.name == 'posix':      # start again at once; on Windows it would let two servers share the port
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)    # an answer leaves at once; clients inherit it
        server.bind(address)
        server.listen(max(socket.SOMAXCONN, 4096))      # the notes' 5 would leave a crowd waiting for seconds
        return server
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        sys.exit(f'cannot listen on host {host!a}, port {port}: {reason}')


def main():
    global answer, traced, ring, asyncio
    parser = arguments()
    parser.add_argument('--engine', default='auto', choices=['auto', 'io_uring', 'asyncio'],
                        help='auto: io_uring where the kernel permits it, otherwise asyncio')
    args = parser.parse_args()
    serve, model = serve_asyncio, 'asynchronous, asyncio on ' + ('IOCP: completion' if os.name == 'nt' else 'a selector: readiness')
    try:
        if args.engine != 'asyncio':
            ring = open_ring()
            serve, model = serve_io_uring, 'asynchronous, io_uring: completion'
    except OSError as error:
        if args.engine == 'io_uring':
            sys.exit(f'there is no io_uring here: {error}; take --engine asyncio')
        model += f'; no io_uring: {error}'
    answer = slow(args.work) if args.work else answer
    traced = TracedLoop if args.trace else lambda loop, words: loop
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited')     # if Ctrl-C comes just before the await
    server = listen(args.host, args.port)
    if serve is serve_asyncio:
        import asyncio      # slow to import: so only where it is needed, and when the socket stands
    run(serve, server, model)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:       # before there was a server, while a name is looked up
        sys.exit(1)

"""The client of all servers: talk to one, load it, draw or compare them all.

    python client.py                    chat: type a line, see the answer
    python client.py -m hello -m bye    send these, print the answers, leave
    python client.py < file > copy      a pipe: every byte out, every byte back
    python client.py load               requests per second, and their latency
    python client.py figure             three pictures of the models, from a run
    python client.py compare            measure every server, judge every claim

python client.py chat --help (and so on) says more. To follow the notes, read
only *chat*, the first part. The others measure the servers.
"""
import signal
if __name__ == '__main__' and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C while we import: end without a word
import argparse
import codecs
import collections
import contextlib
import heapq
import html
import itertools
import json
import math
import os
import platform
import random
import re
import select
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import textwrap
import threading
import time


# ---- chat: connect, chat, converse, typed_lines, show_reply, pipe ----

SCRIPTS = {8083: 'select', 8088: 'selectors', 8084: 'async', 8081: 'socketserver'}


def connect(host, port):
    """Return a connection to HOST and PORT, or exit with status 1 and the reason."""
    try:
        return socket.create_connection((host, port))
    except (OSError, UnicodeError) as error:
        words = f'cannot connect to host {host!a}, port {port}: {reason(error)}'
        if isinstance(error, ConnectionRefusedError):
            name = SCRIPTS.get(port, 'blocking')
            words += f'\nTo start a server there: python {name}_server.py --port {port}'
        sys.exit(words)


def reason(error):
    """Return what an exception says, without its number."""
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def chat(args):
    """Talk to a server.

    At a terminal each line is sent and the reply printed; exit or Ctrl-D (on
    Windows Ctrl-Z, Enter) leaves. A file or a pipe is sent whole, and all that
    comes back is written. "connected" does not mean that the server has accepted
    us: until then the kernel of its machine keeps the connection in a queue.
    """
    with connect(args.host, args.port) as sock:
        if args.message:
            converse(sock, args.message, args.quiet)
        elif sys.stdin and sys.stdin.isatty():      # so is NUL on Windows, and ends at once
            end = 'Ctrl-D' if os.name == 'posix' else 'Ctrl-Z Enter'
            print(f'connected to {args.host}, port {args.port}, '
                  f'from port {sock.getsockname()[1]}; exit or {end} leaves', flush=True)
            converse(sock, typed_lines(sock), args.quiet)
        else:
            pipe(sock)


def converse(sock, messages, quiet):
    """Send one message after the other, and show what comes back, until one is `exit`."""
    message = ''
    for message in messages:
        if message.strip():
            sock.settimeout(None)               # the timeout that ends a reply is not for sending
            with contextlib.suppress(OSError):      # if the connection is lost, recv tells
                sock.sendall(message.encode('utf-8', 'surrogateescape'))
        if message.strip() == 'exit':
            break
        first = None if message.strip() else 0.001      # blank: only what has come already
        if not show_reply(sock, first, quiet):
            sys.exit('the server has closed the connection')
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    # Wait for its close: a reset would crash the notes' servers. And a slow one has more to say.
    if message.strip() == 'exit':
        while receive(sock, 1):
            pass
    else:
        show_reply(sock, max(1, quiet), max(1, quiet))


def typed_lines(sock):
    """Yield the lines that a person types until Ctrl-D, and a blank one if the server says
    something first, or leaves. (On Windows we can wait for the keyboard only.)"""
    line = ' '
    while line:
        print('>>: ', end='', flush=True)
        ready = [0]
        if hasattr(select, 'poll'):
            poll = select.poll()            # select takes no descriptor above 1023
            poll.register(0, select.POLLIN)
            poll.register(sock, select.POLLIN)
            ready = dict(poll.poll())       # blocks until somebody says something
        line = sys.stdin.readline() if 0 in ready else ' '
        if not line.endswith('\n'):
            print()                         # the prompt's line is still open
        yield line.strip()


def show_reply(sock, first, quiet):
    """Show all that comes until nothing has come for QUIET seconds; the first piece has FIRST
    seconds (None: any time). Return whether the server is still there."""
    decoder = codecs.getincrementaldecoder('utf-8')('replace')      # keeps half a character
    piece = receive(sock, first)
    if piece:
        while piece:
            show(piece, decoder)
            piece = receive(sock, quiet)
        show(b'', decoder, end='\n')
    return piece is None


def receive(sock, timeout):
    """Return what has come, None if nothing comes for TIMEOUT seconds, b'' if nothing will."""
    sock.settimeout(timeout)
    try:
        return sock.recv(65536)
    except OSError as error:        # a timeout of ours has no number, but ETIMEDOUT has
        return b'' if error.errno else None


def show(piece, decoder, end=''):
    """Print a piece of a reply: to a terminal as text, elsewhere byte for byte."""
    if sys.stdout.isatty():
        print(printable(decoder.decode(piece, final=bool(end))), end=end, flush=True)
    else:
        write_all(piece + end.encode())


def printable(text):
    """Return TEXT with escapes for control characters, which a terminal would obey."""
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode()
                   for letter in text)


def write_all(data):
    """Write DATA to standard output, which may take only a part of it, or not block at all."""
    while data:
        try:
            data = data[os.write(1, data):]
        except BlockingIOError:
            select.select([], [1], [])      # blocks until its reader has read some
        except BrokenPipeError:             # nobody reads it any more: main ends without a word
            raise
        except OSError as error:
            sys.exit(f'cannot write to standard output: {reason(error)}')


def pipe(sock):
    """Send standard input to the server and write what comes back to standard output."""
    sent = []           # the number of bytes, or why not all
    threading.Thread(target=send_input, args=(sock, sent), daemon=True).start()
    received = 0
    for data in iter(lambda: receive(sock, None), b''):
        received += len(data)
        write_all(data)
    sent.append('the server has closed the connection before all input was sent')
    if isinstance(sent[0], str):
        sys.exit(sent[0])
    if received < sent[0]:          # more is fine: selectors_server.py adds a suffix
        sys.exit(f'the server has sent back {received} of {sent[0]} bytes, then closed')


def send_input(sock, result):
    """Send all of standard input, then half-close. RESULT gets how many bytes, or why not all."""
    sent = 0
    with contextlib.suppress(OSError):      # it is lost: the main thread sees that too
        for data in iter(lambda: read_input(result), b''):
            sock.sendall(data)
            sent += len(data)
        result.append(sent)
        sock.shutdown(socket.SHUT_WR)       # now the server sends what it owes, and closes


def read_input(result):
    """Return the next bytes of standard input, b'' at its end; if it fails, RESULT says why."""
    while True:
        try:
            return os.read(0 if sys.stdin else -1, 65536)       # -1: it is closed
        except BlockingIOError:             # it does not block (O_NONBLOCK), and nothing is there
            select.select([0], [], [])      # blocks until something is
        except OSError as error:
            result.append(f'cannot read standard input: {reason(error)}')
            return b''


# ---- many clients: Loop ----

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
EARLY = 0.0002          # seconds: a sleeper is woken about so late, so the rest is polled
LINGER_ZERO = struct.pack('hh' if os.name == 'nt' else 'ii', 1, 0)      # close with a reset


class Loop:
    """Many clients in one thread: section 3 of the notes. Each is a generator. It yields what it
    waits for: READ, WRITE or both, of its socket; or a float, a moment of time.perf_counter."""

    def __init__(self):
        self.sel = selectors.DefaultSelector()
        self.socks = set()
        self.timers = []                    # a heap of (moment, descriptor, sock, client)
        self.lateness = collections.Counter()       # of timers: {bucket: how often}

    def resume(self, sock, client, watched=0):
        """Run CLIENT up to its next yield. WATCHED is what SOCK was registered for (0: nothing)."""
        wanted = next(client, None)
        if wanted == watched:
            return
        if watched:
            self.sel.unregister(sock)
        if wanted is None:          # it has ended
            self.socks.discard(sock)
            sock.close()
        elif isinstance(wanted, float):
            heapq.heappush(self.timers, (wanted, sock.fileno(), sock, client))
        else:
            self.sel.register(sock, wanted, client)

    def run(self, until):
        """Resume clients until the moment UNTIL, or until none is left."""
        now = time.perf_counter()
        while now < until and self.socks:
            for key, mask in self.select(until - now):
                self.resume(key.fileobj, key.data, key.events)
            now = time.perf_counter()
            while self.timers and self.timers[0][0] <= now:
                moment, _, sock, client = heapq.heappop(self.timers)
                self.resume(sock, client)
                self.lateness[bucket(now - moment)] += 1

    def select(self, seconds):
        """Wait until a client is ready, a timer is due or SECONDS are over. Return who is ready."""
        seconds = min(seconds, 0.2)             # on Windows Ctrl-C is noticed at its end
        if self.timers:
            seconds = max(0, min(seconds, self.timers[0][0] - EARLY - time.perf_counter()))
            if hasattr(self.sel, 'fileno') and self.sel.fileno() < 1024:
                select.select([self.sel], [], [], seconds)      # epoll's wait rounds up to 1 ms
                return self.sel.select(0)
        if self.sel.get_map():
            return self.sel.select(seconds)
        time.sleep(seconds)                     # on Windows select fails with empty lists
        return []

    def close(self):
        """End all clients."""
        for sock in self.socks:
            sock.close()
        self.sel.close()


# ---- servers and what they cost: cpu_seconds, server_cpu, Disturbance, Server ----
# Only Linux has /proc; elsewhere what is read from it is not measured.

HAS_PROC = sys.platform == 'linux' and all(     # smaps_rollup: Linux 4.14
    os.path.exists(f'/proc/self/{name}') for name in ('smaps_rollup', 'schedstat'))
HAS_GIL = getattr(sys, '_is_gil_enabled', lambda: True)()
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
CONNECTED, LISTENS = '01', '0A'     # states of /proc/net/tcp
FOLDER = os.path.dirname(os.path.realpath(__file__))
SELECTORS = [kind for kind in 'epoll kqueue devpoll poll select'.split() if hasattr(select, kind)]
BEST = SELECTORS[0]         # the system's own
SELECTOR = f'selectors {BEST}'
MODELS = {          # name: script and arguments; the last ones decide no claim
    **{f'blocking {mode}': ('blocking_server.py', '--mode', mode)
       for mode in ('serial', 'thread', 'process')},
    **{f'pool of {size}': ('blocking_server.py', '--mode', 'pool', '--pool-size', str(size))
       for size in (1, 2, 4, 16)},
    'non-blocking': ('nonblocking_server.py',),
    'non-blocking 20 ms': ('nonblocking_server.py', '--pause', '0.02'),
    'select': ('select_server.py',),
    **{f'selectors {kind}': ('selectors_server.py', '--suffix=', '--selector', kind)
       for kind in reversed(SELECTORS)},
    **{engine: ('async_server.py', '--engine', engine) for engine in ('asyncio', 'io_uring')},
    **{f'socketserver {mode}': ('socketserver_server.py', '--reply', 'upper', '--mode', mode)
       for mode in ('serial', 'thread', 'process')},
}
LOOPS = ['select', SELECTOR, 'non-blocking']
ASYNC = ['asyncio', 'io_uring']


def machine():
    """Return what every measurement depends on."""
    gil = '' if HAS_GIL else ' without a GIL'
    python = f'{platform.python_implementation()} {platform.python_version()}{gil}'
    system = 'Windows'
    if os.name == 'posix':
        system = os.uname().sysname + ' ' + os.uname().release.partition('-')[0]
    return f'{python}, {system}, {counted(PROCESSORS, "processor")}'


def counted(number, noun):
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def raise_file_limit(needed=0):
    """Raise our limit of open files as far as allowed; return it. Raises OSError below NEEDED."""
    limit = 512                             # of our select on Windows
    if os.name == 'posix':
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = hard if 0 < hard <= 1 << 20 else 10240       # macOS does not take "unlimited"
        limit = max(soft, most) if soft >= 0 else 1 << 20
        if 0 <= soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < needed:
        raise OSError(f'{needed} open files are needed, and {limit} are allowed: '
                      'raise the hard limit (ulimit -Hn), or use fewer connections')
    return limit


def proc_stat(pid):
    """Return the fields of /proc/PID/stat after the name, which may contain anything (proc(5))."""
    with open(f'/proc/{pid}/stat', errors='replace') as file:
        return file.read().rpartition(')')[2].split()


def each_process(look, pids=None):
    """Return {pid: LOOK(pid)} for PIDS (None: for all), except those that we may not look at."""
    if pids is None:
        pids = map(int, filter(str.isdigit, os.listdir('/proc') if HAS_PROC else []))
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):      # another user's, or it has just ended
            found[pid] = look(pid)
    return found


def total(pid, count):
    """Return the sum of COUNT(process) for PID and its children (a server has no others)."""
    counts = each_process(
        lambda each: count(each) if pid in (each, int(proc_stat(each)[1])) else 0)
    return sum(counts.values())


def cpu_seconds(pid):
    """Return the seconds of CPU that PID and its children have used, those that have ended
    included. Raises OSError if PID has ended, or is another user's."""
    reaped = sum(map(int, proc_stat(pid)[13:15])) / os.sysconf('SC_CLK_TCK')
    # clock_getcpuclockid(3) of Linux encodes the CPU clock of a process this way
    return reaped + total(pid, lambda each: time.clock_gettime(~each << 3 | 2))


def memory_bytes(pid):
    """Return the bytes of memory of PID and its children; each shared page counts once (Pss)."""
    def pss(each):
        with open(f'/proc/{each}/smaps_rollup') as file:
            return int(re.search(r'^Pss: *(\d+)', file.read(), re.M)[1]) * 1024
    return total(pid, pss)


def seconds_waited(pid='thread-self'):
    """Return how long (the main thread of) PID was ready to run, and had no processor to run on:
    the second number of /proc/PID/schedstat, in ns (Documentation/scheduler of Linux)."""
    with open(f'/proc/{pid}/schedstat') as file:
        return int(file.read().split()[1]) / 1e9


def find_sockets(pattern):
    """Return what the groups of PATTERN match in /proc/net/tcp and tcp6 (proc_net_tcp of Linux)."""
    found = []
    for table in 'tcp', 'tcp6':
        with contextlib.suppress(OSError), open(f'/proc/net/{table}') as file:
            found += re.findall(pattern, file.read())
    return found


def kernel_addresses(address):
    """Return a pattern of an address as these tables have it: 127.0.0.1, port 80 is 0100007F:0050,
    and on a socket that takes IPv6 too 0000000000000000FFFF00000100007F:0050."""
    family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
    host = socket.inet_pton(family, address[0].partition('%')[0])       # fe80::1%eth0
    words = ''.join(f'{word:08X}' for word in struct.unpack(f'={len(host) // 4}I', host))
    return f'(?:0{{16}}{socket.htonl(0xffff):08X})?{words}:{address[1]:04X}'


def receive_queue(server_address, client_address):
    """Return Recv-Q of ss(8): the bytes that the server has not received. None: no connection."""
    found = find_sockets(f': {kernel_addresses(server_address)} '
                         rf'{kernel_addresses(client_address)} \w\w \w+:(\w+)')
    return int(found[0], 16) if found else None


def holders(address, state):
    """Return the processes that hold a socket at a (pattern of an) address in this state."""
    inodes = find_sockets(rf': {address} \w+:\w+ {state}(?: +\S+){{5}} +(\d+)')
    links = {f'socket:[{inode}]' for inode in inodes}
    holds = each_process(lambda pid: any(os.readlink(f'/proc/{pid}/fd/{fd}') in links
                                         for fd in os.listdir(f'/proc/{pid}/fd')))
    return [pid for pid, held in holds.items() if held]


def listeners_cpu(address):
    """Return {pid: CPU seconds} of all that listen on that port number, whatever the address."""
    return each_process(cpu_seconds, holders(rf'\w+:{address[1]:04X}', LISTENS))


def server_cpu(address, before):
    """Return (CPU seconds since BEFORE, '') or (None, why not) of the process that holds our
    connections, or whose child does; if none does, of the one that listens there."""
    if not HAS_PROC:
        return None, 'only Linux tells'
    pattern = kernel_addresses(address)
    try:
        found = {pid if pid in before else int(proc_stat(pid)[1])
                 for pid in holders(pattern, CONNECTED) or holders(pattern, LISTENS)}
        if not found or not found <= set(before):
            return None, "no process of ours listens there now: is it another user's?"
        return sum(cpu_seconds(pid) - before[pid] for pid in found), ''
    except OSError:
        return None, 'the server has ended'


def handle_signals(handler):
    """Install HANDLER for the signals that end us, except ignored ones. Return the old ones."""
    before = {}
    if threading.current_thread() is threading.main_thread():       # only it gets signals
        for name in 'SIGINT', 'SIGTERM', 'SIGHUP':
            number = getattr(signal, name, None)        # Windows has no SIGHUP
            if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    return before


class Server(contextlib.AbstractContextManager):
    """A running server script: its process, its address, and what it prints. BEFORE is a command
    that runs it. Raises RuntimeError if no `listening` line comes in time."""
    running = set()
    used = 0            # CPU seconds of those that have been stopped
    python = [sys.executable]

    def __init__(self, script, *arguments, timeout=20, before=(), **options):
        self.name = ' '.join([script, *arguments])
        self.log = []           # (when it came, line) of all its output
        self.passed = 0         # how many of these `expect` has looked at
        options = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE,
                   'stderr': subprocess.STDOUT, 'start_new_session': os.name == 'posix', **options}
        self.launch([*before, *self.python, os.path.join(FOLDER, script), '--port', '0',
                     *arguments], options)      # of two --port the last counts
        try:
            self.reader.start()         # RuntimeError: no thread to be had
            host, port = self.expect(r'listening on (\S+):(\d+)', timeout).groups()
            self.address = host.strip('[]'), int(port)
        except BaseException:
            self.stop()
            raise

    def launch(self, command, options):
        """Start the process."""
        came = []           # signals: they wait, or a Ctrl-C could leave a server nobody stops
        handlers = handle_signals(lambda number, frame: came.append(number))
        try:
            self.process = subprocess.Popen(command, **options)
            self.pid = self.process.pid
            self.reader = threading.Thread(target=self.collect, daemon=True)
            Server.running.add(self)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for number in came:
                signal.raise_signal(number)

    def collect(self):
        """Put each line of output into the log. This is a thread of its own."""
        with self.process.stdout as stream:
            for line in stream:
                self.log.append((time.perf_counter(), line.decode('utf-8', 'replace').rstrip()))

    def expect(self, pattern, timeout=20):
        """Return the match of the next line that has PATTERN, or raise RuntimeError."""
        end = time.monotonic() + timeout
        last = False
        while not last:
            last = not self.reader.is_alive() or time.monotonic() > end     # then look once more
            while self.passed < len(self.log):
                self.passed += 1
                match = re.search(pattern, self.log[self.passed - 1][1])
                if match:
                    return match
            time.sleep(0.001)
        said = ' / '.join(self.seen()) or 'nothing'
        raise RuntimeError(f'{self.name} did not print {pattern!r}, but: {said}')

    def seen(self):
        """Return the lines that `expect` has looked at."""
        return [line for when, line in self.log[:self.passed]]

    def stop(self):
        """End the server and its children, which are of its session, and return its status."""
        if HAS_PROC and self in Server.running:
            with contextlib.suppress(OSError):
                Server.used += cpu_seconds(self.pid)    # now: nobody has that of killed children
        with contextlib.suppress(OSError):
            if os.name == 'posix':
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self.process.kill()
        with contextlib.suppress(RuntimeError):     # it could not start
            self.reader.join(3)
        Server.running.discard(self)
        return self.process.wait()

    def __exit__(self, *exception):
        self.stop()


class Disturbance:
    """What disturbs us from now until `stop`, in shares of the time of the processors that we may
    use (0 where /proc is not known).

    others: used by neither us nor our servers (of class Server, and the seconds in `servers`): of
        /proc/stat user, nice, system, steal; irq is in some kernels' times of processes (proc(5)).
    waited: for a processor, by the thread that asks. The quota of a cgroup shows only here.
    disturbed: whether others had more than a tenth, and more than was idle; or we waited for more
        than a tenth though much was idle.
    """

    def __init__(self):
        self.servers = 0
        self.start = self.look()

    def look(self):
        """Return the seconds until now: of all processors, used, ours, waited."""
        now = time.perf_counter() * PROCESSORS
        if not HAS_PROC:
            return now, 0, 0, 0
        names = {f'cpu{number}' for number in os.sched_getaffinity(0)}
        with open('/proc/stat') as file:
            rows = [line.split() for line in file if line.partition(' ')[0] in names]
        ticks = sum(int(row[field]) for row in rows for field in (1, 2, 3, 8))
        ours = time.process_time() + Server.used
        for server in list(Server.running):
            with contextlib.suppress(OSError):      # it has ended
                ours += cpu_seconds(server.pid)
        return now, ticks / os.sysconf('SC_CLK_TCK'), ours, seconds_waited() * PROCESSORS

    def stop(self):
        """Measure, and return self."""
        passed, *times = [now - before for now, before in zip(self.look(), self.start)]
        used, ours, self.waited = [seconds / passed for seconds in times]
        self.others = max(0, used - ours - self.servers / passed)
        idle = 1 - used         # where little is idle, we may have waited for our own servers
        self.disturbed = self.others > max(0.1, idle) or (self.waited > 0.1 and idle > 0.4)
        return self

    def words(self):
        """Return what disturbed us in words; '' if nothing did."""
        if self.others > 0.1:
            return f'other programs used {100 * self.others:.0f} % of the processors'
        if self.disturbed:
            return f'a limit of CPU time held us up for {100 * self.waited:.0f} % of the time'
        return ''


# ---- load: Load, load, measure_load, format_load ----

# Messages are pieces of these random bytes: hardly any two are alike.
PAYLOAD = random.Random(1).getrandbits(8 << 20).to_bytes(1 << 20, 'little')
AS_LETTERS = bytes(ord('a') + byte % 26 for byte in range(256))     # --text: one for each byte
PERCENTILES = {'p50': 0.5, 'p95': 0.95, 'p99': 0.99, 'p99_9': 0.999, 'max': 1}


class Load(Loop):
    """Connections that each send a message, check its answer byte for byte, and send the next.

    Closed loop: as soon as they have the answer. Open loop: when it is due, of RATE requests a
    second in all. There a latency counts from that moment on: a server that stands still answers
    for all that were due meanwhile, not only for what was sent ("coordinated omission", Gil Tene).
    """

    def __init__(self, address, size=64, reconnect=False, rate=0, text=False):
        super().__init__()
        self.address = address
        self.size = size
        self.reconnect = reconnect
        self.rate = rate
        self.pieces = itertools.count()         # of the payload: each message is the next
        payload = bytearray(PAYLOAD * math.ceil(size / len(PAYLOAD)))
        if text:
            payload = payload.translate(AS_LETTERS)
            payload[size - 1::size] = b'\n' * (len(payload) // size)
        self.payload = memoryview(payload)
        self.upper = bytes(payload).upper()
        self.count = 0          # connections, which are numbered
        self.begun = {}         # connection: when its open request began, or is due
        self.answered = set()   # connections that have had an answer, or expect none
        self.lost = set()       # connections that have ended
        self.errors = collections.Counter()
        self.first_wrong = ''
        self.latencies = collections.Counter()      # {bucket: how often}

    def open(self, count, most=sys.maxsize):
        """Open connections until there are COUNT. After MOST messages each is idle."""
        self.due = time.perf_counter()      # in an open loop, when the last request was due
        for number in range(self.count, count):
            self.open_one(number, most)
        self.count = count

    def open_one(self, number, most):
        sock = socket.socket(socket.AF_INET6 if ':' in self.address[0] else socket.AF_INET)
        sock.setblocking(False)
        self.socks.add(sock)
        self.resume(sock, self.connection(sock, number, most))

    def hold(self, count, most=sys.maxsize):
        """Open connections until there are COUNT; return how many have an answer in 5 seconds."""
        self.open(count, most)
        end = time.perf_counter() + 5
        while len(self.answered | self.lost) < count and time.perf_counter() < end:
            self.run(time.perf_counter() + 0.01)
        return len(self.answered - self.lost)

    def connection(self, sock, number, most):
        """Be one connection. With --reconnect another one takes its place after each answer."""
        try:
            if most:
                yield from self.begin(number)
            with contextlib.suppress(BlockingIOError):
                sock.connect(self.address)
            yield WRITE         # it is connected; if not, send or recv says why
            for _ in range(most):
                yield from self.exchange(sock, number)
                if self.reconnect:
                    self.open_one(number, most)
                    return
                yield from self.begin(number)
            self.begun.pop(number, None)
            self.answered.add(number)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)   # no TIME_WAIT
            yield READ          # it waits for nothing, so ready means that it has ended:
            sock.recv(1)        # this says whether it was refused or reset
            raise ConnectionError('closed by the server')
        except OSError as error:
            self.begun.pop(number, None)
            self.errors[reason(error)] += 1
            self.lost.add(number)

    def begin(self, number):
        """Begin a request: now, or when the next is due. Return the moments to wait for, if any."""
        now = self.begun[number] = time.perf_counter()
        if not self.rate:
            return ()
        self.due += 1 / self.rate
        self.begun[number] = self.due
        return (self.due,) if self.due > now else ()

    def exchange(self, sock, number):
        """Send a message, and check its answer."""
        start = next(self.pieces) % (len(self.payload) // self.size) * self.size
        unsent = self.payload[start:start + self.size]
        received = bytearray()
        while len(received) < self.size:
            if unsent:
                try:
                    unsent = unsent[sock.send(unsent):]
                except BlockingIOError:
                    pass
            yield READ | WRITE if unsent else READ
            try:
                data = sock.recv(65536)
            except BlockingIOError:     # it was ready for writing only
                continue
            if not data:
                raise ConnectionError('closed by the server')
            received += data
        self.answered.add(number)
        self.check(received, start, time.perf_counter() - self.begun[number])

    def check(self, received, start, latency):
        """Count an answer; describe the first wrong one. If it is too long, the connection ends."""
        expected = self.upper[start:start + self.size]
        if received == expected:
            self.latencies[bucket(latency)] += 1
            return
        at = next(at for at in range(len(received)) if received[at:at + 1] != expected[at:at + 1])
        right = (repr(expected[at:at + 20]) if at < self.size else
                 'its end (start selectors_server.py with --suffix=)')
        words = f'byte {at} of an answer: {bytes(received[at:at + 20])!r} instead of {right}'
        self.first_wrong = self.first_wrong or words
        if len(received) > self.size:
            raise ConnectionError('wrong answer')
        self.errors['wrong answer'] += 1

    def report(self, end):
        """Return what was measured. What has waited longer than any that was answered counts."""
        waits = [end - begun for begun in self.begun.values() if begun <= end]
        due = int((end - self.due) * self.rate)         # since that one
        not_sent = [end - self.due - number / self.rate for number in range(1, due + 1)]
        slowest = max(self.latencies, default=-math.inf)
        latencies = self.latencies + collections.Counter(
            wait for wait in map(bucket, waits + not_sent) if wait > slowest)
        never = [number for number in range(self.count)
                 if number not in self.answered and self.begun.get(number, 0) <= end]
        report = {f'{name}_ms': in_ms(percentile(latencies, share))
                  for name, share in PERCENTILES.items()}
        report.update(requests=sum(self.latencies.values()), open_requests=len(waits),
                      longest_open_ms=in_ms(max(waits, default=0)), due_not_sent=len(not_sent),
                      never_answered=len(never), errors=self.errors, first_wrong=self.first_wrong,
                      client_late_ms=in_ms(percentile(self.lateness, 0.5)))
        return report


def bucket(seconds):
    """Return the number of the bucket of a histogram: each is 0.1 % longer than the one before."""
    return int(1000 * math.log(seconds or 1e-9))


def percentile(counts, share):
    """Return the seconds that SHARE of them did not exceed, from {bucket: count}; None of none."""
    rank = math.ceil(share * sum(counts.values()))
    for number in sorted(counts):
        rank -= counts[number]
        if rank <= 0:
            return math.exp(number / 1000)
    return None


def in_ms(seconds):
    return None if seconds is None else seconds * 1e3


def load(args):
    """Load a server, and report.

    A message is --size random bytes; with --text it is letters and a newline, for
    servers of lines. Each answer must be the same bytes in upper case (ASCII
    letters only). When a connection has it, it sends the next (a closed loop).

    With --rate messages are due at fixed times instead (an open loop). A latency
    counts from then on: a server that stands still answers for all that wait.
    """
    raise_file_limit(args.connections + args.idle + 20)
    with connect(args.host, args.port) as sock:     # a name may have several addresses
        address = sock.getpeername()                # this one answers
    active = Load(address, args.size, args.reconnect, args.rate, args.text)
    with contextlib.closing(active):
        active.hold(args.idle, most=0)
        report, status = measure_load(active, args)
    show_progress('')
    print(json.dumps(report) if args.json else format_load(report, args), flush=True)
    bad = report['errors'] or report['never_answered'] or not report['requests']
    return status or (1 if bad else 0)


def run_load(active, args, start):
    """Run a load for --seconds, or until a signal. Return the exit status."""
    now = start
    asking = set(range(args.idle, args.idle + args.connections))
    try:
        active.open(args.idle + args.connections)
        while now < start + args.seconds and asking - active.lost:
            active.run(min(start + args.seconds, now + 0.5))
            now = time.perf_counter()
            rate = sum(active.latencies.values()) / (now - start)
            show_progress(f'{now - start:5.1f} s  {rate:9.0f} requests/s')
    except SystemExit as stop:      # Ctrl-C
        return stop.code
    return 0


def measure_load(active, args):
    """Run a load. Return the report, by the names of --json, and the exit status."""
    before = listeners_cpu(active.address)
    watch = Disturbance()
    start = time.perf_counter()
    own = time.process_time()
    status = run_load(active, args, start)
    seconds = time.perf_counter() - start
    own = time.process_time() - own
    cpu, not_known = server_cpu(active.address, before)
    watch.servers = cpu or 0
    watch.stop()
    report = active.report(start + seconds)
    for name in 'connections', 'idle', 'size', 'reconnect', 'rate', 'text':
        report[name] = getattr(args, name)
    requests = report['requests']
    report.update(seconds=seconds, interrupted=status != 0, requests_per_second=requests / seconds,
                  client_cpu_percent=100 * own / seconds, not_known=not_known,
                  others_percent=None if not_known else 100 * watch.others,
                  disturbed='' if not_known else watch.words(),
                  client_cpu_us_per_request=own / requests * 1e6 if requests else None,
                  server_cpu_us_per_request=None if not_known or not requests else
                  cpu / requests * 1e6)
    return report, status


def show_progress(words):
    """Show one line of progress in place of the last, on a terminal, of its width."""
    if sys.stderr.isatty():
        width = max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
        print(f'\r{words[:width]:<{width}}', end='\r', file=sys.stderr, flush=True)


def format_load(report, args):
    """Return the report of a load for people, in lines of 80 columns."""
    kind = f'open loop, {args.rate:g} a second' if args.rate else 'closed loop'
    if args.reconnect:
        kind += ', a new connection for each request'
    if report['interrupted']:
        kind += ', interrupted'
    errors = [f'{count} x {error}' for error, count in report['errors'].items()]
    if report['never_answered']:
        errors.append(f'{counted(report["never_answered"], "connection")} never got an answer')
    rows = [(f'{args.host}, port {args.port}: ',
             f'{counted(args.connections, "connection")}, {args.idle} idle, '
             f'{counted(args.size, "byte")}, {report["seconds"]:.1f} s, {kind}'),
            ('', report['disturbed']),
            *speed_rows(report, args),
            ('open', f'{counted(report["open_requests"], "request")} at the end, '
             f'the longest for {report["longest_open_ms"]:.2f} ms'),
            ('errors', ', '.join(errors) or 'none'),
            ('', report['first_wrong'])]
    return '\n'.join(textwrap.fill(f'{name:<11}{words}', 80, subsequent_indent=' ' * 11)
                     for name, words in rows if words)


def speed_rows(report, args):
    """Yield the rows on requests, latency and CPU."""
    rate = f'{report["requests"]}: {report["requests_per_second"]:.0f} a second'
    if args.rate:
        rate += (f'; due and not sent: {report["due_not_sent"]}; '
                 f'the timer was {report["client_late_ms"] or 0:.2f} ms late')
    yield 'requests', rate
    if report['max_ms'] is not None:
        yield 'latency', ', '.join(f'{name.replace("_", ".")} {report[name + "_ms"]:.2f}'
                                   for name in PERCENTILES) + ' ms'
    if report['requests']:
        server = report['server_cpu_us_per_request']
        words = f'not known: {report["not_known"]}' if server is None else f'{server:.1f} us'
        client = f'{report["client_cpu_us_per_request"]:.1f} us'
        yield 'CPU', f'per request: server {words}; this client {client}'
    if report['client_cpu_percent'] > 90:
        yield '', 'this client kept a processor busy, so it limits the rate'


# ---- pictures are rows, lists of (kind, words): paint, print_rows, draw_rows, write_svg ----

KINDS = {       # kind: character, colour on a terminal (of 256), colour in an SVG
    '': (' ', 0, ''), 'title': (' ', 0, ''), 'good': (' ', 0, '#1b7f3b'),
    'bad': (' ', 0, '#c0392b'), 'copy': ('#', 182, '#d9a6d9'), 'ask': ('!', 0, ''),
    # grey: nobody waits for the process; blue: it sleeps; yellow: it asks again and again
    'wait': ('.', 252, '#d4d4d4'), 'asleep': ('z', 117, '#8cc8f0'), 'asks': ('?', 228, '#f2e16b'),
    # orange: somebody must wait for it; red: it does not even know; green: it has it in hand
    'held': ('H', 215, '#f5b060'), 'socket': ('s', 215, '#f5b060'),
    'unaccepted': ('N', 203, '#f0756b'), 'memory': ('m', 114, '#84cf93'),
    'delay': ('d', 114, '#84cf93'), 'work': ('c', 114, '#84cf93')}
LABELS = {'wait': ' waits for the data ', 'asleep': ' asleep ', 'asks': ' asks '}


def paint(phases, begin, seconds, width):
    """Return parts of a row: WIDTH cells for SECONDS from BEGIN. PHASES are (kind, start, end)."""
    cells = [''] * width
    for kind, start, end in phases:
        first = max(0, min(width - 1, int((start - begin) / seconds * width)))
        last = max(first + 1, min(width, round((end - begin) / seconds * width)))
        cells[first:last] = [kind] * (last - first)
    parts = []
    for kind, run in itertools.groupby(cells):
        size = len(list(run))
        label = LABELS.get(kind, '')
        words = label if len(label) < size else ''
        parts.append((kind, words.center(size, KINDS[kind][0])))
    return parts


def print_rows(rows):
    """Print rows as text, in colour on a terminal that shows it (see no-color.org)."""
    colour = (sys.stdout.isatty() and not os.environ.get('NO_COLOR')
              and os.environ.get('TERM') != 'dumb'
              and (os.name == 'posix' or 'WT_SESSION' in os.environ))
    for row in rows:
        line = ''
        for kind, words in row:
            code = f'48;5;{KINDS[kind][1]};38;5;16' if KINDS[kind][1] else '1' if kind else ''
            words = printable(words)
            line += f'\033[{code}m{words}\033[0m' if colour and code else words
        print(line.rstrip())


def draw_rows(rows, title):
    """Return rows of 80 columns as an SVG document: cells of 8 by 17 units with the same words."""
    fills = ''.join(f'.{kind}{{fill:{fill}}}' for kind, (*_, fill) in KINDS.items() if fill)
    style = ('text{font:13.2px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;'
             'fill:#1a1a1a;white-space:pre}.title,.ask{font-weight:bold}.paper{fill:#fff}' + fills +
             '@media(prefers-color-scheme:dark){.paper{fill:#16181c}text{fill:#eaeaea}'
             'text.cell{fill:#111}.good{fill:#6fd08c}.bad{fill:#ff9184}}')
    width = 8 * 80 + 16
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" role="img" width="100%" '
             f'style="max-width:{width}px" viewBox="0 0 {width} {17 * len(rows) + 12}">'
             f'<title>{title}</title><style>{style}</style>',
             '<rect class="paper" width="100%" height="100%"/>']
    for number, row in enumerate(rows):
        x = 8
        y = 6 + 17 * number
        for kind, words in row:
            words = printable(words)
            size = 8 * len(words)
            if KINDS[kind][1]:
                parts.append(f'<rect x="{x}" y="{y}" width="{size}" height="16" class="{kind}"/>')
                kind = 'cell'
            parts.append(f'<text x="{x}" y="{y + 12.5}" textLength="{size}" class="{kind}">'
                         f'{html.escape(words, quote=False)}</text>')
            x += size
    return '\n'.join([*parts, '</svg>\n'])


def write_svg(path, document):
    """Put DOCUMENT in the place of the file at PATH, if one is wanted, whole or not at all. If it
    is None, only see whether that can be done. Exits with status 1 and the reason if it cannot."""
    if not path:
        return
    special = os.path.exists(path) and not os.path.isfile(path)     # such as /dev/stdout
    part = path if special else os.path.realpath(path) + '.part'
    try:
        with open(part, 'w', encoding='utf-8', newline='\n') as file:
            file.write(document or '')
        if document is None and not special:
            os.remove(part)
        elif not special:
            os.replace(part, os.path.realpath(path))
    except (OSError, ValueError) as error:      # ValueError: a null character in the path
        sys.exit(f'cannot write to {path!a}: {reason(error)}')


# ---- figure: Client, play, one_read, who_copies, three_clients, figure ----

READS = {'blocking': 'blocking serial', 'non-blocking': 'non-blocking', 'select': 'select',
         'selectors': SELECTOR, 'asyncio': 'asyncio', 'io_uring': 'io_uring'}
SAID = (r'blocked [\d.]+ \w+|asked \d+ times|waited [\d.]+ \w+(?=,.* read #)|copied in [\d.]+ \w+'
        r'|(?:ready after|in place)[^:]*')      # of a read in a trace
COMPUTE = 0.25              # seconds: B's answer is computed
GROUPS = {          # the third picture: models that may be one group
    'serial': ['blocking serial'], 'thread': ['blocking thread'], 'process': ['blocking process'],
    'pool of 2': ['pool of 2'], 'loops': LOOPS, 'async': ASYNC}
THREE = [(0, 0.3), (0.05, 0.05), (0.1, 0.1)]    # when A, B and C connect and ask
SLOW = 0.2                  # seconds that each answer takes
LEGEND = [[('', f'{"":13}'), ('ask', '!'), ('', ' asks   '), ('held', 'H'),
           ('', ' held up by another client   '), ('unaccepted', 'N'), ('', ' not accepted yet')],
          [('', f'{"":13}'), ('delay', 'd'), ('', ' its own answer waits   '), ('work', 'c'),
           ('', ' it is computed')]]


class Client(threading.Thread):
    """A client that follows a script: section 1 of the notes, a thread and a blocking socket. It
    notes moments of time.perf_counter, and stays until all COMPANIONS (a Barrier) are answered."""
    connected = asked = replied = port = None
    error = ''

    def __init__(self, *arguments):
        super().__init__(target=self.follow, args=arguments, daemon=True)

    def follow(self, address, connects, asks, companions):
        try:
            time.sleep(max(0, connects - time.perf_counter()))
            with socket.create_connection(address, 10) as sock:
                self.port = sock.getsockname()[1]
                self.connected = time.perf_counter()
                time.sleep(max(0, asks - time.perf_counter()))
                sock.sendall(b'hello')
                self.asked = time.perf_counter()
                if sock.recv(100) != b'HELLO':
                    raise OSError('the server did not answer HELLO')
                self.replied = time.perf_counter()
                with contextlib.suppress(threading.BrokenBarrierError):
                    companions.wait()
        except OSError as error:
            self.error = reason(error)


def play(server, scripts, stay=0.03):
    """Start a client for each (connects, asks) of SCRIPTS, in seconds; it stays at most STAY."""
    companions = threading.Barrier(len(scripts), timeout=stay)
    begin = time.perf_counter() + 0.005
    clients = [Client(server.address, begin + connects, begin + asks, companions)
               for connects, asks in scripts]
    for client in clients:
        client.start()
    return clients


def finish(clients):
    """Wait for the end of CLIENTS. Raises RuntimeError as soon as one was not answered."""
    for client in clients:
        client.join()
        if client.error:
            raise RuntimeError(client.error)


@contextlib.contextmanager
def noting(failed, key):
    """What goes wrong in a `with` block of this costs nothing else: FAILED[KEY] is the reason."""
    try:
        yield
    except (OSError, RuntimeError) as error:        # what the server has said, or the error
        failed[key] = str(error).partition(', but: ')[2] or reason(error)
    except Exception as error:                      # a bug of ours
        failed[key] = repr(error)


def draw_server(name, options, draw):
    """Return the row of a server: what DRAW(server) returns, or why that is missing."""
    failed = {}
    with noting(failed, name), Server(*MODELS[READS[name]], *options) as server:
        return [('', f'{name:<13}'), *draw(server)]
    return missing_row(name, failed[name])


def missing_row(name, why):
    return [('', f'{name[:12]:<13}'), ('', f'missing: {why}'[:66])]


def one_read():
    """Return the rows of the first picture."""
    rows = [[('title', 'One read: the client is silent for 0.3 s, then says hello')],
            [('', f'{"":13}0        0.1      0.2      0.3 s')],
            [('', f'{"kernel":<13}'), *paint([('wait', 0, 0.3)], 0, 0.3, 27), ('copy', '#'),
             ('', '  copy: too short for this scale')]]
    return rows + [draw_server(name, ['--trace'], read_row) for name in READS]


def read_row(server):
    """Return what a server does until hello comes, and what its trace says of the read. Its main
    thread talks to the client: state R of /proc/PID/stat runs, any other is asleep (proc(5))."""
    [client] = clients = play(server, [(0, 0.3)])
    phases = []         # each lasts to the end: the next paints over it
    while client.asked is None and not client.error:
        if HAS_PROC and client.connected is not None:
            kind = 'asks' if proc_stat(server.pid)[0] == 'R' else 'asleep'
            phases.append((kind, time.perf_counter(), client.connected + 0.3))
        time.sleep(0.002)
    finish(clients)
    server.expect("recv .* 5 bytes b'hello'", timeout=1)
    since_accept = '\n'.join(server.seen()).rpartition('joined')[2]
    label = ', '.join(re.findall(SAID, since_accept)).replace('blocked', 'blocked in recv')
    del phases[-1:]             # hello may have come already
    if not phases:              # not Linux: what the trace says
        phases = [('asks' if 'asked' in label else 'asleep', client.connected, client.asked)]
    copy = ('', ' ') if 'in place' in label else ('copy', '#')
    return [*paint(phases, client.connected, 0.3, 27), copy, ('', f'  {label}')]


def who_copies():
    """Return the rows of the second picture."""
    title = [('title', 'Who copies while the process computes for B? A says hello at 0.1 s')]
    if not HAS_PROC:
        return [title, [('', 'This needs Recv-Q of /proc/net/tcp, which only Linux has.')]]
    return [title, [('', f'{"":13}0       0.1     0.2     0.3     0.4 s')],
            *[draw_server(name, ['--work', str(COMPUTE)], bytes_row) for name in list(READS)[1:]],
            [('', f'{"":13}'), ('socket', 's'), ('', ' in the socket (Recv-Q 5)   '),
             ('memory', 'm'), ('', " in the process's memory")]]


def look_at_bytes(server):
    """While the server computes for B, A says hello. Return, in seconds since B asked, when it did
    and when its bytes had left the socket; and for what share of the remaining computing they were
    in it: below a half if the kernel copies meanwhile, 1 if recv does when it is back."""
    a, b = clients = play(server, [(0, 0.2), (0, 0.1)])
    left = None
    while left is None and a.is_alive():
        start = time.perf_counter()
        if a.asked is not None and not receive_queue(server.address, ('127.0.0.1', a.port)):
            left = time.perf_counter()
        # look every 2 ms; every 20 ms where that takes long: thousands are in TIME_WAIT
        time.sleep(0.002 if time.perf_counter() - start < 0.005 else 0.02)
    finish(clients)
    if not 0 < a.asked - b.asked < COMPUTE:
        raise RuntimeError('a client was late: no hello while B was computed')
    left = left or a.replied
    share = (left - a.asked) / max(b.replied - a.asked, 0.001)
    return a.asked - b.asked, left - b.asked, share


def bytes_row(server):
    """Return where A's bytes are while a server computes for B."""
    hello, left, share = look_at_bytes(server)
    phases = [('wait', 0, hello), ('memory', left, 0.4), ('socket', hello, left)]
    copier = 'the kernel, meanwhile' if share < 0.5 else 'recv, when it is back'
    return [*paint(phases, 0, 0.4, 32), ('', f'  {(left - hello) * 1e3:.0f} ms: {copier}')]


def three_clients():
    """Return the rows of the third picture."""
    rows = [[('title', 'Three clients: A connects first and asks at 0.3 s, B and C ask at once')],
            [('', f'each answer:  waits {SLOW} s (--delay){"":18}computes {SLOW} s (--work)')],
            [('', f'{"":13}' + 2 * '0    0.2  0.4  0.6  0.8s waited    ')]]
    for name, members in GROUPS.items():
        rows += group_rows(name, members)
    return rows + LEGEND


def play_slow(model):
    """Play the three clients against a server whose answers wait, and one that computes them."""
    show_progress(f'three clients: {model}')
    with Server(*MODELS[model], '--delay', str(SLOW), '--trace') as waits, \
            Server(*MODELS[model], '--work', str(SLOW), '--trace') as computes:
        first = play(waits, THREE)
        second = play(computes, THREE)
        finish(first + second)      # then both servers end, and their traces are complete
    return draw_clients(first, 'delay', waits) + draw_clients(second, 'work', computes)


def draw_clients(clients, kind, server):
    """Return for each client the cells that show what it waited for, and for how many seconds.
    The trace has a line when it is accepted, and when its answer, of this KIND, begins and ends."""
    drawn = []
    for client in clients:
        server.passed = 0           # A may have been accepted after B
        number = server.expect(rf'(#\d+) +accept .*:{client.port} joined')[1]
        accepted, begun, done = [when for when, line in server.log
                                 if re.search(f' {number} +(accept|answer) ', line)]
        asked, replied = client.asked, client.replied
        if replied - done < 0.01:       # less would not be visible
            done = replied
        phases = [('wait', client.connected, asked), ('held', asked, replied),
                  ('unaccepted', asked, max(asked, accepted)), (kind, begun, done),
                  ('ask', asked, asked)]
        drawn.append((paint(phases, clients[0].connected, 1.0, 24), replied - asked))
    return drawn


def group_rows(name, members):
    """Return the rows of a group: its first member's, and how far apart the waits of all are."""
    failed = {}
    good = []
    for model in members:
        with noting(failed, model):
            good.append(play_slow(model))
    rows = [missing_row(model, why) for model, why in failed.items()]
    heads = [name, '', '']
    if len(good) > 1:
        waits = [[waited for cells, waited in member] for member in good]
        apart = max(max(of_one) - min(of_one) for of_one in zip(*waits))
        heads[1:] = [f'{len(good)} within', f'{apart * 1e3:.0f} ms']
    for number, head in enumerate(heads if good else []):
        row = [('', f'{head[:10]:<11}{"ABC"[number]} ')]
        for cells, waited in good[0][number::3]:        # by --delay, by --work
            row += [*cells, ('', f' {waited:5.2f} s   ')]
        rows.append(row)
    return rows


def figure(args):
    """Show three pictures of the models, from a run: one read; who copies while
    the process computes; three clients whose answers are slow. It starts each
    server and takes about 15 seconds."""
    write_svg(args.svg, None)       # now, before anything is measured
    watch = Disturbance()
    rows = [[('', f'{machine()}, {time.strftime("%Y-%m-%d %H:%M")}')]]
    for picture in one_read, who_copies, three_clients:
        show_progress(picture.__name__.replace('_', ' '))
        rows += [[], *picture()]
    show_progress('')
    if watch.stop().words():
        rows.insert(1, [('bad', watch.words())])
    write_svg(args.svg, draw_rows(rows, 'I/O models, drawn from a run'))
    print_rows(rows)
    return 0


# ---- compare: measuring (METRICS, experiments, EXPERIMENTS, Run, measure) ----

HOLD = 0.2                  # seconds: how long a first client keeps others waiting, if it can
SLOW_ANSWER = 0.02          # seconds: an answer that waits, or computes
BATCH = 0.015               # seconds: a batch of requests
STEPS = [0, 10, 100, 500, 1000]     # idle clients beside busy ones
OFFERED = 1100              # clients, more than select can watch
Metric = collections.namedtuple('Metric', 'words unit wall head', defaults=[''])
METRICS = {     # what it is, in which unit; is it of wall time?; the head of its column, if any
    'workers': Metric('threads or processes', 1, False, 'threads|or pro-|cesses'),
    'idle_bytes': Metric('KiB for an idle client', 1024, False, 'KiB per|idle|client'),
    'idle_cpu': Metric('% of CPU while idle', 0.01, False, 'CPU %|when|idle'),
    'cpu_100': Metric('us of CPU per request of 100', 1e-6, False, 'us CPU|of 100|clients'),
    'rate_100': Metric('requests a second', 1, True, 'requests|a second|of 100'),
    'second': Metric('ms that a second client waits', 1e-3, True, 'client|2 waits|ms'),
    'delay_adds': Metric("ms added by another's wait of 20", 1e-3, True, 'waiting|adds|ms'),
    'work_adds': Metric("ms added by another's work of 20", 1e-3, True, 'work|adds|ms'),
    **{f'with_{count}': Metric(f'us of CPU beside {count} idle ones', 1e-6, False, f'{count:8}')
       for count in STEPS},
    'grows': Metric('times the CPU beside 1000 idle ones', 1, False, 'grows x'),
    'one': Metric('us until one is answered', 1e-6, True),
    'one_of_4': Metric('one of 4', 1e-6, True),
    'new_cpu': Metric('us of CPU on a new connection', 1e-6, False),
    'fits': Metric('ms that client 4 waits', 1e-3, True),
    'full': Metric('client 5', 1e-3, True),
    'wait_16': Metric('ms until one of 16 is answered', 1e-3, True),
    'held': Metric(f'clients held, of {OFFERED}', 1, False),
    'in_socket': Metric('% of the computing that bytes stay in the socket', 0.01, False),
}
GROWTH = [f'with_{count}' for count in STEPS] + ['grows']
TABLE = [name for name, metric in METRICS.items() if metric.head and name not in GROWTH]


def hold_all(crowd, count, most=sys.maxsize):
    """Let a crowd have COUNT connections. Raises RuntimeError if the server does not hold them."""
    held = crowd.hold(count, most)
    if held < count:
        raise RuntimeError(f'it holds {held} of {count} clients: {dict(crowd.errors)}')


def busy(server, clients, seconds=BATCH, reconnect=False, batches=3):
    """Load a server in BATCHES of so many SECONDS. Return requests a second, the median latency of
    the best batch, and CPU seconds per request. Raises RuntimeError if an answer is not right."""
    latencies = []
    done = 0
    with contextlib.closing(Load(server.address, reconnect=reconnect)) as active:
        hold_all(active, clients)
        start = time.perf_counter()
        before = cpu_seconds(server.pid) if HAS_PROC else 0
        for _ in range(batches):
            active.latencies.clear()
            active.run(time.perf_counter() + seconds)
            done += sum(active.latencies.values())
            latencies.append(percentile(active.latencies, 0.5))
        passed = time.perf_counter() - start
        cpu = (cpu_seconds(server.pid) - before) / done if HAS_PROC and done else None
    if active.errors:
        raise RuntimeError(f'errors: {dict(active.errors)} {active.first_wrong}')
    # each client had a request open when the first batch began
    return max(0, done - clients) / passed, min(filter(None, latencies), default=None), cpu


def client_wait(server, before):
    """Return how long a client waits if BEFORE others are there, which stay HOLD at most."""
    others = [(0.002 * number, 0.02) for number in range(before)]
    clients = play(server, [*others, (0.04, 0.05)], stay=HOLD)
    finish(clients)
    return clients[-1].replied - clients[-1].asked


def slow_answer_adds(server):
    """Return how long past SLOW_ANSWER two clients that ask together both have their answers."""
    clients = play(server, [(0, 0.01), (0, 0.01)])
    finish(clients)
    passed = max(client.replied for client in clients) - min(client.asked for client in clients)
    return max(0, passed - SLOW_ANSWER)


def idle_crowd(server):
    """Return the bytes of memory for each idle client, the threads and processes, and the share of
    the CPU that others left to the server which it uses while all are idle."""
    if not HAS_PROC:
        return ()
    before = memory_bytes(server.pid)
    with contextlib.closing(Load(server.address, 1)) as crowd:
        hold_all(crowd, 100, most=1)
        grown = memory_bytes(server.pid) - before
        workers = total(server.pid, lambda each: len(os.listdir(f'/proc/{each}/task')))
        used = -cpu_seconds(server.pid)
        available = seconds_waited(server.pid) - time.perf_counter()
        time.sleep(0.06)
        used += cpu_seconds(server.pid)
        available += time.perf_counter() - seconds_waited(server.pid)
    return max(0, grown / 100), workers, used / max(available, used, 0.001)


def growth(server):
    """Return by what factor CPU per request grows, and its seconds beside STEPS idle clients."""
    costs = []
    with contextlib.closing(Load(server.address, 1)) as crowd:
        for count in STEPS:
            if count <= raise_file_limit() - 250:
                hold_all(crowd, count, most=1)
                costs.append(busy(server, 4)[2])
    factor = costs[-1] / costs[0] if len(costs) == len(STEPS) and all(costs) else None
    return (factor, *costs)


def clients_held(server):
    """Return how many of OFFERED clients the server really holds: each had an answer."""
    raise_file_limit(OFFERED + 20)
    with contextlib.closing(Load(server.address, 1)) as crowd:
        return crowd.hold(OFFERED, most=1)


CURVE = ['blocking thread', 'non-blocking', 'select', 'selectors poll', SELECTOR, *ASYNC]
MANY = [*CURVE, 'blocking process', 'non-blocking 20 ms', 'selectors select',
        'socketserver thread', 'socketserver process']          # serve many clients at once
# Metrics ('-': not used); what returns them; options (rows with the same share a server); models
EXPERIMENTS = [
    ('idle_bytes workers idle_cpu', idle_crowd, (), MANY),      # first: its server must be fresh
    ('second', lambda server: client_wait(server, before=1), (),
     [*MANY, 'blocking serial', 'pool of 4', 'socketserver serial']),
    ('fits', lambda server: client_wait(server, before=3), (), ['pool of 4']),
    ('full', lambda server: client_wait(server, before=4), (), ['pool of 4']),
    ('grows with_0 with_10 with_100 with_500 with_1000', growth, (), CURVE),
    ('- one_of_4 -', lambda server: busy(server, 4), (), CURVE),
    ('rate_100 - cpu_100', lambda server: busy(server, 100), (), MANY),
    ('- one -', lambda server: busy(server, 1, batches=7), (),
     ['blocking thread', *LOOPS, 'non-blocking 20 ms']),
    ('- - new_cpu', lambda server: busy(server, 4, reconnect=True), (),
     ['blocking thread', 'pool of 4']),
    ('held', clients_held, (), ['select', 'selectors poll']),
    ('delay_adds', slow_answer_adds, ('--delay', str(SLOW_ANSWER)), MANY),
    ('work_adds', slow_answer_adds, ('--work', str(SLOW_ANSWER)), MANY),
    ('- wait_16 -', lambda server: busy(server, 16, seconds=0.06, reconnect=True),
     ('--delay', '0.01'), ['pool of 1', 'pool of 16', 'blocking serial', 'blocking thread']),
    ('in_socket', lambda server: look_at_bytes(server)[2] if HAS_PROC else None,
     ('--work', str(COMPUTE)), LOOPS + ASYNC),
]


class Run:
    """What has been measured, and what failed."""

    def __init__(self):
        self.measured = {}      # (metric, model): [(value, whether it was disturbed)]
        self.failed = {}        # (model, metrics or '' if it did not even start): why
        self.whole = Disturbance()

    def do(self, model):
        """Do the experiments that have not failed with a model; return whether it was disturbed."""
        watch = Disturbance()
        values = []             # (metric, value)
        for options, rows in itertools.groupby(EXPERIMENTS, lambda row: row[2]):
            wanted = [(metrics, experiment) for metrics, experiment, _, models in rows
                      if model in models and not {(model, ''), (model, metrics)} & set(self.failed)]
            if wanted:
                with noting(self.failed, (model, '')), Server(*MODELS[model], *options) as server:
                    for metrics, experiment in wanted:
                        with noting(self.failed, (model, metrics)):
                            found = experiment(server)
                            found = found if isinstance(found, tuple) else (found,)
                            values += zip(metrics.split(), found)
        disturbed = watch.stop().disturbed
        for metric, value in values:
            if metric != '-' and value is not None:     # None: only Linux tells
                self.measured.setdefault((metric, model), []).append((value, disturbed))
        return disturbed

    def values(self, metric, model):
        """Return the (value, disturbed) that may decide: those that were not disturbed; if there
        are none, the others, but not of wall time."""
        found = self.measured.get((metric, model), [])
        clean = [(value, disturbed) for value, disturbed in found if not disturbed]
        return clean if clean or METRICS[metric].wall else found

    def words(self, metric, model, whole_range=False):
        """Return the median or the range in the metric's unit; '-': not measured; '?': disturbed"""
        values = [value / METRICS[metric].unit for value, _ in self.values(metric, model)]
        if not values:
            return '?' if (metric, model) in self.measured else '-'
        low, high = short(min(values)), short(max(values))
        return f'{low}-{high}' if whole_range and low != high else short(statistics.median(values))


def short(value):
    """Return a number in few characters: three digits, or all that stand before the point."""
    return f'{value:.0f}' if value >= 99.5 else f'{value:.2g}' if value >= 0.01 else '<0.01'


def measure(run, models, limit):
    """Measure MODELS; then again those that were disturbed, in the order of the table, unless that
    does not help. Begin none after 1.4 times LIMIT seconds, to end within one and a half."""
    end = time.monotonic() + 1.4 * limit
    again = []
    for number, model in enumerate(models, 1):
        show_progress(f'{number} of {len(models)}: {model}')
        if time.monotonic() < end and run.do(model):
            again.append(model)
    again.sort(key=list(MODELS).index)
    for number, model in enumerate(again):
        show_progress(f'again, as it was disturbed: {model}')
        if time.monotonic() > end or (run.do(model) and number == 0):
            break


# ---- compare: the claims and the report (CLAIMS, judge, report_rows, compare) ----

HOLDS, FAILS, UNSURE, NONE = 'holds', 'does not hold', 'cannot tell', 'not measured'
CLAIMS = [          # section of the notes (and: ours), the claim, the conditions that decide it
    ('1', 'A second client of a serial server waits for the first',
     ['3 * second@blocking thread < second@blocking serial']),
    ('1', 'With a thread or process each, no client blocks another',
     [f'3 * second@{each} < second@blocking serial'
      for each in ('blocking thread', 'blocking process')]),
    ('1', 'Threads take memory, and processes take more',
     ['2 * idle_bytes@select < idle_bytes@blocking thread',
      'idle_bytes@blocking thread < idle_bytes@blocking process']),
    ('1', 'With 100 clients, threads take more CPU than select',
     ['cpu_100@select < cpu_100@blocking thread']),
    ('1', 'A pool of 4 has a limit: client 5 waits, client 4 does not',
     ['3 * fits@pool of 4 < full@pool of 4']),
    ('1', 'A pool of 1 for 16 clients is no better than serial',
     ['0.6 * wait_16@blocking serial < wait_16@pool of 1']),
    ('1, ours', 'A pool of 16 is as good as threads, one of 1 is not',
     ['0.6 * wait_16@pool of 16 < wait_16@blocking thread',
      '4 * wait_16@blocking thread < wait_16@pool of 1']),
    ('1', 'A pool that keeps its threads saves the CPU of making them',
     ['new_cpu@pool of 4 < new_cpu@blocking thread']),
    ('1', 'Connections that stay save the CPU of new ones',
     ['1.5 * with_0@blocking thread < new_cpu@blocking thread']),
    ('2', 'Polling takes CPU when no client sends; select does not',
     ['0.5 < idle_cpu@non-blocking', 'idle_cpu@select < 0.1']),
    ('2', 'Polling with pauses of 20 ms answers late, and seldom',
     ['5 * one@blocking thread < one@non-blocking 20 ms',
      'rate_100@non-blocking 20 ms < rate_100@blocking thread']),
    ('2, ours', 'Without pauses it answers one client as soon as a thread',
     ['0.6 * one@non-blocking < one@blocking thread']),
    ('3', 'For one client, or one of 4, select is not 3 times as fast',
     [f'0.3 * {metric}@blocking thread < {metric}@{model}'
      for metric in ('one', 'one_of_4') for model in ('select', SELECTOR)]),
    ('3', 'select serves many with one thread and little CPU',
     ['workers@select < 1.5', 'idle_cpu@select < 0.1',
      '3 * second@select < second@blocking serial']),
    ('3', 'select and poll cost more, the more they watch',
     [f'1.5 < grows@{each}' for each in ('select', 'selectors poll')]),
    ('3', f'{BEST} does not: it stays below twice the cost',
     [f'grows@{SELECTOR} < 2']),
    ('3', 'select watches at most 1024 connections, poll more',
     ['0.9 * held@select < 1025', '1024 < 1.1 * held@selectors poll']),
    ('3, ours', 'A wait that blocks holds up everybody in a loop',
     [f'3 * delay_adds@blocking thread < delay_adds@{each}' for each in LOOPS]),
    ('4, ours', 'A wait that is awaited, or has a thread, holds up nobody',
     [f'3 * delay_adds@{each} < delay_adds@select' for each in [*ASYNC, 'blocking thread']]),
    ('3', 'Computing holds up everybody in a loop (async too)',
     [f'0.012 < work_adds@{each}' for each in LOOPS + ASYNC]),
    ('3, ours', 'With a GIL it holds up other threads; never processes',
     ['2 * work_adds@blocking process < work_adds@blocking thread']
     if HAS_GIL and PROCESSORS > 1 else []),
    ('4', 'With io_uring the kernel copies meanwhile; otherwise not',
     [f'2 * in_socket@io_uring < in_socket@{each}' for each in [*LOOPS, 'asyncio']]),
]
SIDE = re.compile(r'(?:([\d.]+) \* )?(?:(\w+)@([^<]+)|([\d.]+))')      # of a condition


def judge(run, section, claim, conditions):
    """Return a claim, with its verdict and the metrics that decide it in words."""
    # each side is (factor, metric, model, number), None for what it lacks
    sides = [SIDE.fullmatch(side).groups() for each in conditions for side in each.split(' < ')]
    verdicts = [judge_one(low, high, run) for low, high in zip(sides[::2], sides[1::2])]
    verdict = next((each for each in (FAILS, NONE, UNSURE, HOLDS) if each in verdicts), NONE)
    evidence = {}       # words of a metric: {words of a model: True}, in order
    for factor, metric, model, number in sides:
        if metric:
            name = re.sub('^blocking |^selectors (?=epoll|poll)', '', model)
            values = run.words(metric, model, whole_range=verdict != HOLDS)
            evidence.setdefault(METRICS[metric].words, {})[f'{name} {values}'] = True
    words = [f'{words}: {", ".join(found)}' for words, found in evidence.items()]
    return {'section': section, 'claim': claim, 'conditions': conditions, 'verdict': verdict,
            'evidence': '; '.join(words) or 'this machine or Python lacks what it is about'}


def judge_one(low, high, run):
    """Return the verdict on LOW < HIGH: ranges a tenth apart decide; disturbed ones do not deny."""
    ranges = []
    disturbed = False
    for factor, metric, model, number in (low, high):
        values = [(float(number), False)] if number else run.values(metric, model)
        if not values:
            return UNSURE if (metric, model) in run.measured else NONE
        ranges.append([float(factor or 1) * value for value, _ in values])
        disturbed = disturbed or any(too for _, too in values)
    below, above = ranges
    if max(below) * 1.1 <= min(above):
        return HOLDS
    return FAILS if min(below) >= max(above) * 1.1 and not disturbed else UNSURE


def table_rows(run, names, models):
    """Return a table: medians of these metrics, a row for each server."""
    columns = [METRICS[name].head.split('|') for name in names]
    widths = [max(map(len, column)) + 1 for column in columns]
    lines = [('', *words) for words in zip(*columns)]
    lines += [(model, *(run.words(name, model) for name in names)) for model in models]
    rows = []
    for model, *cells in lines:
        if set(cells) != {'-'}:
            words = ''.join(f'{cell:>{width}}' for cell, width in zip(cells, widths))
            rows.append([('' if model else 'title', f'{model:<20}{words}')])
    return rows


def claim_rows(judged):
    """Return the claims, each with its verdict and the metrics that decide it."""
    rows = []
    for claim in judged:
        kind = {HOLDS: 'good', FAILS: 'bad'}.get(claim['verdict'], 'title')
        words = f'({claim["section"]}) {claim["claim"]}'
        rows.append([(kind, f'{claim["verdict"]:<14}'), ('', words)])
        rows += [[('', f'    {line}')] for line in textwrap.wrap(claim['evidence'], 76)]
    return rows


def head_rows(run, judged, partial):
    """Return the first and last lines: what disturbed the run, and how many claims hold."""
    counts = collections.Counter(claim['verdict'] for claim in judged)
    words = f'{counts[HOLDS]} of {len(judged)} claims hold here'
    for verdict in FAILS, UNSURE, NONE:
        if counts[verdict]:
            said = verdict if counts[verdict] == 1 else verdict.replace('does', 'do')
            words += f', {counts[verdict]} {said}'
    rows = [[('title', words)]]
    if run.whole.words():
        rows.insert(0, [('bad', f'{run.whole.words()}; ? is what they disturbed')])
    if partial:
        rows.append([('bad', 'PARTIAL: it was interrupted.')])
    return rows


def report_rows(run, judged, partial):
    """Return the report for people."""
    head = head_rows(run, judged, partial)
    rows = [*head, [('', f'{machine()}, {time.strftime("%Y-%m-%d %H:%M")}')], [],
            *table_rows(run, TABLE, MODELS), [],
            [('title', 'us of CPU per request of 4 busy clients, beside idle ones')],
            *table_rows(run, GROWTH, CURVE), [], *claim_rows(judged), []]
    rows += [[('', textwrap.shorten(f'not measured: {" ".join(key)}: {why}', 79))]
             for key, why in run.failed.items()]
    return rows + head


def json_report(run, judged, quick, partial):
    """Return what --json prints."""
    measured = {}
    for (metric, model), values in run.measured.items():
        measured.setdefault(metric, {})[model] = [value for value, _ in values]
    return {'machine': machine(), 'date': time.strftime('%Y-%m-%d %H:%M'), 'quick': quick,
            'partial': partial, 'others_percent': 100 * run.whole.others if HAS_PROC else None,
            'disturbed': run.whole.words() if HAS_PROC else 'not known: only Linux tells',
            'measured': measured, 'claims': judged,
            'not_measured': {' '.join(key): why for key, why in run.failed.items()}}


def compare(args):
    """Measure every server of the folder, and judge the claims of the notes, and
    some of ours. What other programs have disturbed is measured again; if that
    does not help, it denies nothing. Takes about 75 seconds, with --quick 35."""
    write_svg(args.svg, None)       # now, before anything is measured
    raise_file_limit()
    run = Run()
    status = 0
    try:
        measure(run, (2 if args.quick else 3) * list(MODELS), 40 if args.quick else 90)
    except SystemExit as stop:      # Ctrl-C
        status = stop.code
    show_progress('')
    run.whole.stop()
    judged = [judge(run, *row) for row in CLAIMS]
    rows = report_rows(run, judged, partial=status != 0)
    write_svg(args.svg, draw_rows(rows, 'I/O models, measured'))
    if args.json:
        print(json.dumps(json_report(run, judged, args.quick, partial=status != 0), indent=1))
    else:
        print_rows(rows)
    return status or (0 if run.measured else 1)


# ---- arguments and start ----

def parse_arguments(words):
    """Return the arguments; without a command they are those of chat."""
    form = {'formatter_class': argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **form)
    commands = parser.add_subparsers(metavar='chat | load | figure | compare')
    add = {}        # how to add an option to each command
    for command in chat, load, figure, compare:
        description = (command.__doc__ or '').replace('\n    ', '\n')
        subparser = commands.add_parser(command.__name__, description=description, **form)
        subparser.set_defaults(command=command)
        add[command] = subparser.add_argument

    def add_number(command, name, kind, low, high, default, words):
        def number(text):
            if low <= kind(text) <= high:       # neither nan nor inf is
                return kind(text)
            raise argparse.ArgumentTypeError(f'{text} is not between {low} and {high}')
        words += f' (default {default})'
        add[command](name, type=number, default=default, metavar='N', help=words)
    for command in chat, load:
        add[command]('--host', default='127.0.0.1', help='its address (default %(default)s)')
        add_number(command, '--port', int, 1, 65535, 8080, 'its port')
    add[chat]('-m', dest='message', action='append', metavar='TEXT',
              help='send TEXT, print the reply, leave; may be repeated')
    add_number(chat, '--quiet', float, 0.001, 3600, 0.2, 'seconds of silence that end a reply')
    add_number(load, '--connections', int, 1, 100000, 100, 'connections that send requests')
    add_number(load, '--seconds', float, 0.01, 86400, 5, 'how long')
    add_number(load, '--rate', float, 0, 10000000, 0, 'requests a second; 0: as answers come')
    add_number(load, '--size', int, 1, 1 << 28, 64, 'bytes of each message')
    add[load]('--text', action='store_true', help='letters and a newline, not random bytes')
    add_number(load, '--idle', int, 0, 100000, 0, 'more connections, which send nothing')
    add[load]('--reconnect', action='store_true', help='a new connection for each request')
    add[compare]('--quick', action='store_true', help='rougher, in half the time')
    for command in load, compare:
        add[command]('--json', action='store_true', help='print the results as JSON')
    for command in figure, compare:
        add[command]('--svg', metavar='FILE', help='also write it as a picture')
    if not words or (words[0].startswith('-') and words[0] not in ('-h', '--help')):
        words = ['chat', *words]
    if words[0] in commands.choices:        # a mistake is told with the usage of this command
        return commands.choices[words[0]].parse_args(words[1:])
    return parser.parse_args(words)         # exits: --help, or no such command


def prepare():
    """Set up streams and SIGCHLD. Exits if there is no standard output."""
    if not sys.stderr:          # closed (2>&-): what is meant for it goes nowhere
        sys.stderr = open(os.devnull, 'w', errors='ignore')
    if not sys.stdout:
        sys.exit('cannot write to standard output: it is closed')
    for stream, errors in (sys.stdin, 'surrogateescape'), (sys.stdout, 'backslashreplace'):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors=errors)   # a console may not know every character
    if hasattr(signal, 'SIGCHLD'):      # if it is ignored, nobody learns how our servers ended
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def main():
    prepare()
    try:
        try:
            args = parse_arguments(sys.argv[1:])
            if args.command is not chat:        # which a signal ends at once, in any call
                handle_signals(lambda number, frame: sys.exit(128 + number))
            sys.exit(args.command(args))
        finally:
            handle_signals(lambda number, frame: None)      # now they must not disturb us
            for server in list(Server.running):
                server.stop()
            sys.stdout.flush()      # here, so that an error of it is seen
    except (OSError, MemoryError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)    # Python must not write the rest at its exit
        silent = isinstance(error, BrokenPipeError)     # nobody reads our output any more
        sys.exit(1 if silent else f'cannot go on: {reason(error)}')


if __name__ == '__main__':
    main()

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
import argparse
import codecs
import collections
import contextlib
import errno
import itertools
import json
import math
import os
import platform
import queue
import random
import re
import select
import selectors
import signal
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
            script = SCRIPTS.get(port, 'blocking') + '_server.py'
            words += f'\nTo start a server there: python {script} --port {port}'
        sys.exit(words)


def reason(error):
    """Return what an exception says, without its number."""
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def format_address(address):
    host, port = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def chat(args):
    """Talk to a server.

    At a terminal each line is sent and the reply printed; exit or Ctrl-D (on Windows
    Ctrl-Z, Enter) leaves. A file or a pipe is sent whole, and all that comes back
    is written. "connected" does not mean that the server has accepted us: until
    then the kernel of its machine keeps the connection in a queue.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C ends us at once, in any call
    with connect(args.host, args.port) as sock:
        terminal = sys.stdin and sys.stdin.isatty() and (   # on Windows NUL claims to be one too
            os.name == 'posix' or 'Console' in type(sys.stdin.buffer.raw).__name__)
        if args.message:
            converse(sock, args.message, args.quiet)
        elif terminal:
            end = 'Ctrl-D' if os.name == 'posix' else 'Ctrl-Z Enter'
            print(f'connected to {format_address(sock.getpeername())} '
                  f'from {format_address(sock.getsockname())}; exit or {end} leaves', flush=True)
            converse(sock, typed_lines(sock, args.quiet), args.quiet)
        else:
            pipe(sock)


def converse(sock, messages, quiet):
    """Send one message after the other, and show what comes back, until one is `exit`."""
    for message in messages:
        if message.strip():
            with contextlib.suppress(OSError):      # if the connection is lost, recv tells
                sock.sendall(message.encode('utf-8', 'surrogateescape'))
            if message.strip() == 'exit':
                break
            show_reply(sock, quiet)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)       # the server closes too: a reset would end the notes'
        sock.settimeout(1)
        while sock.recv(65536):
            pass


def typed_lines(sock, quiet):
    """Yield the lines that a person types, until Ctrl-D. What the server says meanwhile is shown
    at once, and so is that it has left. (On Windows we can wait for the keyboard only.)"""
    while True:
        print('>>: ', end='', flush=True)
        if hasattr(select, 'poll'):
            poll = select.poll()            # select takes no descriptor above 1023
            poll.register(0, select.POLLIN)
            poll.register(sock, select.POLLIN)
            if 0 not in dict(poll.poll()):
                print()
                show_reply(sock, quiet)
                continue
        line = sys.stdin.readline()
        if not line:
            print()
            return
        yield line.strip()


def show_reply(sock, quiet):
    """Show all that comes until nothing has come for QUIET seconds; exit if the server leaves."""
    decoder, shown, piece = codecs.getincrementaldecoder('utf-8')('replace'), False, True
    while piece:
        sock.settimeout(quiet if shown else None)   # the first piece may take any time
        try:
            piece = sock.recv(65536)
        except OSError as error:    # lost; but a timeout of ours has no errno (ETIMEDOUT has)
            piece = b'' if error.errno else None
        if piece:
            show(piece, decoder)
            shown = True
    if shown:
        show(b'', decoder, end='\n')
    if piece == b'':
        sys.exit('the server has closed the connection')


def show(piece, decoder, end=''):
    """Print a piece of a reply: elsewhere byte for byte, to a terminal as text, with escapes for
    control characters. DECODER keeps the first half of a character until the second half comes."""
    if sys.stdout.isatty():
        text = decoder.decode(piece, final=bool(end))
        print(''.join(each if each.isprintable() else each.encode('unicode_escape').decode()
                      for each in text), end=end, flush=True)
    else:
        sys.stdout.buffer.write(piece + end.encode())
        sys.stdout.flush()


def pipe(sock):
    """Send standard input to the server and write what comes back to standard output."""
    sent, received = [], 0
    threading.Thread(target=send_stdin, args=(sock, sent), daemon=True).start()
    with contextlib.suppress(ConnectionResetError, ConnectionAbortedError):
        for data in iter(lambda: sock.recv(65536), b''):
            received += len(data)
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
    if not sent:
        sys.exit('the server has closed the connection before all input was sent')
    if received < sent[0]:          # more is fine: selectors_server.py adds a suffix
        sys.exit(f'the server has sent back {received} of {sent[0]} bytes, then closed')


def send_stdin(sock, sent):
    """Send all of standard input, append to SENT how many bytes it was, then half-close."""
    count = 0
    with contextlib.suppress(OSError):      # it is gone: the main thread sees that too
        for data in iter(lambda: os.read(0, 65536), b'') if sys.stdin else ():
            sock.sendall(data)
            count += len(data)
        sent.append(count)
        sock.shutdown(socket.SHUT_WR)


# ---- load: Load, load, load_report, format_load, open_idle ----

# Messages are pieces of these random bytes: hardly two are alike.
PAYLOAD = random.Random(1).getrandbits(8 << 20).to_bytes(1 << 20, 'little')
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
LINGER_ZERO = struct.pack('hh' if os.name == 'nt' else 'ii', 1, 0)      # close with a reset


class Load:
    """Connections that each send a message, check its answer byte for byte, and send the next."""

    def __init__(self, address, size=64, reconnect=False):
        self.address, self.size, self.reconnect = address, size, reconnect
        self.family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
        self.payload = PAYLOAD * math.ceil(2 * size / len(PAYLOAD))
        self.upper = self.payload.upper()
        # begun: when the open request of each connection began
        self.sel, self.begun, self.requests = selectors.DefaultSelector(), [], 0
        self.errors, self.first_wrong = collections.Counter(), ''
        self.forget()

    def forget(self):
        """Measure anew. Requests that are open stay open."""
        self.latencies = collections.Counter()      # in us, of three digits: memory is bounded
        self.done, self.slowest, self.answered = 0, 0, set()

    def open(self, count):
        """Open COUNT connections more."""
        for _ in range(count):
            self.begun.append(None)
            self.connect(len(self.begun) - 1)

    def connect(self, number):
        """Begin a connection. Its generator yields the events that it waits for."""
        sock = socket.socket(self.family)
        sock.setblocking(False)
        connection = self.converse(sock, number)
        events = next(connection, None)
        if events:
            self.sel.register(sock, events, connection)

    def run(self, seconds, show=False):
        """Serve the connections for SECONDS. With SHOW, print the rate twice a second."""
        start = now = shown = time.perf_counter()
        while now < start + seconds and self.sel.get_map():
            for key, mask in self.sel.select(min(0.2, start + seconds - now)):
                events = next(key.data, None)       # None: it has ended
                if events and events != key.events:
                    self.sel.modify(key.fileobj, events, key.data)
            now = time.perf_counter()
            if show and now - shown > 0.5:
                shown, rate = now, self.done / (now - start)
                print(f'\r{now - start:5.1f} s  {rate:9.0f} requests/s ', end='', file=sys.stderr,
                      flush=True)

    def converse(self, sock, number):
        """One connection. With --reconnect another one takes its place after each answer."""
        again = self.reconnect
        try:
            self.begun[number] = time.perf_counter()
            status = sock.connect_ex(self.address)
            if status in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                yield WRITE
                status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if status:
                raise OSError(status, os.strerror(status))
            yield from self.exchange(sock, number)
            while not again:
                self.begun[number] = time.perf_counter()
                yield from self.exchange(sock, number)
        except (OSError, GeneratorExit) as error:
            again = False
            self.begun[number] = None
            self.errors[reason(error)] += isinstance(error, OSError)
        if sock in self.sel.get_map():
            self.sel.unregister(sock)
        sock.close()
        if again:
            self.connect(number)

    def exchange(self, sock, number):
        """Send a message, and check its answer."""
        self.requests += 1
        start = self.requests * 7919 % (len(self.payload) - self.size + 1)
        unsent = memoryview(self.payload)[start:start + self.size]
        expected, received = self.upper[start:start + self.size], bytearray()
        while len(received) < self.size:
            try:
                unsent = unsent[sock.send(unsent):] if unsent else unsent
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
        latency = time.perf_counter() - self.begun[number]
        self.answered.add(number)
        if received != expected:
            self.note_wrong(received, expected)
        us, step = int(latency * 1e6), 1
        while us >= 1000 * step:
            step *= 10
        self.latencies[us // step * step] += 1
        self.done += 1
        if latency > self.slowest:
            self.slowest = latency

    def note_wrong(self, received, expected):
        """Count a wrong answer, and describe the first. Where one is too long, nobody knows where
        the next begins: that connection ends."""
        at = next((at for at in range(self.size) if received[at] != expected[at]), self.size)
        self.first_wrong = self.first_wrong or (
            f'byte {at} of an answer: {bytes(received[at:at + 20])!r} instead of '
            + (repr(expected[at:at + 20]) if at < self.size else
               'its end (start selectors_server.py with --suffix=)'))
        if len(received) > self.size:
            raise ConnectionError('wrong answer')
        self.errors['wrong answer'] += 1

    def close(self):
        for key in list(self.sel.get_map().values()):
            key.data.close()        # the generator gets a GeneratorExit, and closes the socket
        self.sel.close()


def load(args):
    """Load a server, and report."""
    needed, limit = args.connections + args.idle + 20, file_limit()
    if limit < needed:
        sys.exit(f'{needed} open files are needed, and {limit} are allowed: '
                 'raise the hard limit (ulimit -Hn), or use fewer connections')
    with connect(args.host, args.port) as sock:     # a name may have several addresses
        address = sock.getpeername()                # this one answers
        time.sleep(0.1)             # until it is accepted: then a serial server is free again
    idle, error = open_idle(address, args.idle)
    run, before = Load(address, args.size, args.reconnect), listeners_cpu(address)
    run.errors[f'idle connections: {error}'] = args.idle - len(idle)
    status, terminal = 0, sys.stderr.isatty()
    start, own = time.perf_counter(), time.process_time()
    try:
        run.open(args.connections)
        run.run(args.seconds, show=terminal)
    except SystemExit as stop:      # Ctrl-C
        status = stop.code
    seconds, own = time.perf_counter() - start, time.process_time() - own
    waiting = [start + seconds - begun for begun in run.begun if begun]
    report = load_report(run, args, seconds, waiting, server_cpu(address, before), own)
    print(end='\n' * terminal, file=sys.stderr)
    run.close()
    run.errors['idle connections: closed by the server'] += close_idle(idle)
    report.update(errors=+run.errors, first_wrong=run.first_wrong, interrupted=bool(status))
    print(json.dumps(report) if args.json else format_load(report, args), flush=True)
    return status or (1 if report['errors'] or not run.done else 0)


def load_report(run, args, seconds, waiting, used, own):
    """Return the figures of a load. WAITING: how long each open request has waited. It counts if
    that is longer than the slowest answer. USED and OWN: CPU seconds of server and client."""
    late = [each for each in waiting if each > run.slowest]
    latencies = run.latencies + collections.Counter(int(each * 1e6) for each in late)
    return {'connections': args.connections, 'idle': args.idle, 'size': args.size,
            'reconnect': args.reconnect, 'seconds': seconds, 'requests': run.done,
            'requests_per_second': run.done / seconds,
            'p50_ms': percentile(latencies, 0.5), 'p95_ms': percentile(latencies, 0.95),
            'p99_ms': percentile(latencies, 0.99), 'max_ms': max([run.slowest, *late]) * 1e3,
            'open_requests': len(waiting), 'longest_open_ms': max([0, *waiting]) * 1e3,
            'never_answered': args.connections - len(run.answered),
            'server_cpu_us_per_request': used / run.done * 1e6 if used and run.done else None,
            'client_cpu_us_per_request': own / run.done * 1e6 if run.done else None,
            'client_cpu_percent': 100 * own / seconds}


def percentile(latencies, share):
    """Return the latency in ms that SHARE of the requests did not exceed, from counts by us."""
    rank = math.ceil(share * sum(latencies.values()))
    for us in sorted(latencies):
        rank -= latencies[us]
        if rank <= 0:
            return us / 1e3
    return None


def format_load(report, args):
    """Return the report of a load for people."""
    lines = [f'{args.host}, port {args.port}: {args.connections} connections, {args.idle} idle, '
             f'{args.size} bytes, {report["seconds"]:.1f} s'
             + ', a new connection for each request' * args.reconnect
             + ', interrupted' * report['interrupted'],
             f'requests   {report["requests"]}: {report["requests_per_second"]:.0f} a second']
    if report['p50_ms'] is not None:
        lines.append('latency    ' + ', '.join(
            f'{each} {report[each + "_ms"]:.2f} ms' for each in ('p50', 'p95', 'p99', 'max')))
    if report['requests']:
        server = report['server_cpu_us_per_request']
        lines.append('CPU        ' + (f'server {server:.1f} us per request, ' if server else '')
                     + f'this client {report["client_cpu_us_per_request"]:.1f} us')
    if report['requests'] and report['client_cpu_percent'] > 90:
        lines.append('           (this client kept a processor busy, so it limits the rate)')
    lines.append(f'open       {report["open_requests"]} requests at the end, the longest for '
                 f'{report["longest_open_ms"]:.2f} ms')
    errors = [f'{count} x {each}' for each, count in report['errors'].items()]
    if report['never_answered']:
        errors.append(f'{report["never_answered"]} connections never got an answer')
    return '\n'.join([*lines, 'errors     ' + (', '.join(errors) or 'none'),
                      *[f'           {each}' for each in [report['first_wrong']] if each]])


def file_limit():
    """Raise our limit of open files as far as allowed, and return it."""
    if os.name != 'posix':
        return 512                      # of our select
    import resource
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = hard if 0 < hard <= 1 << 20 else 10240         # macOS does not take "unlimited"
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_idle(address, count):
    """Return COUNT connections that send nothing, or fewer and why there are no more."""
    socks = []
    try:
        while len(socks) < count:
            socks.append(socket.create_connection(address[:2], 5))
    except OSError as error:
        return socks, reason(error)
    return socks, ''


def close_idle(socks):
    """Close idle connections with a reset, so that none stays in TIME_WAIT. Return how many of
    them the server had closed."""
    closed = 0
    for sock in socks:
        try:
            sock.setblocking(False)
            closed += sock.recv(1) == b''
        except BlockingIOError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        except OSError:
            closed += 1
        sock.close()
    return closed


# ---- servers and what they cost: cpu_seconds, memory_bytes, receive_queue, Server ----
# Only Linux has /proc; elsewhere these are not called.

HAS_PROC = sys.platform == 'linux' and os.path.exists('/proc/self/smaps_rollup')    # Linux 4.14
FOLDER = os.path.dirname(os.path.realpath(__file__))
END_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP')
               if hasattr(signal, name)]        # Windows has no SIGHUP


def process_tree(pid):
    """Return PID and its children (the servers have no grandchildren)."""
    children = []
    for each in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError):      # it has just ended
            if int(proc_stat(each)[1]) == pid:
                children.append(int(each))
    return [pid] + children


def proc_stat(pid):
    """Return the fields of /proc/PID/stat after the name, which may contain anything (proc(5))."""
    with open(f'/proc/{pid}/stat', errors='replace') as file:
        return file.read().rpartition(')')[2].split()


def total(pid, count):
    """Return the sum of COUNT(process) for PID and its children."""
    found = 0
    for each in process_tree(pid):
        with contextlib.suppress(OSError):          # it has just ended
            found += count(each)
    return found


def cpu_seconds(pid):
    """Return the seconds of CPU that PID and its children have used, those that have ended
    included; None if that is not known."""
    try:
        reaped = sum(map(int, proc_stat(pid)[13:15]))
        return reaped / os.sysconf('SC_CLK_TCK') + total(pid, cpu_clock)
    except OSError:
        return None


def cpu_clock(pid):
    """Return the seconds of CPU of one process: clock_getcpuclockid(3) numbers its clock so."""
    return time.clock_gettime(~pid << 3 | 2)


def memory_bytes(pid):
    """Return the bytes of memory of PID and its children; each shared page counts once (Pss)."""
    def pss(each):
        with open(f'/proc/{each}/smaps_rollup') as file:
            return int(re.search(r'^Pss: *(\d+)', file.read(), re.M)[1]) * 1024
    return total(pid, pss)


def thread_count(pid):
    """Return how many threads PID and its children have."""
    return total(pid, lambda each: len(os.listdir(f'/proc/{each}/task')))


def kernel_sockets():
    """Return the rows of /proc/net/tcp and tcp6, each split into its fields."""
    rows = []
    for table in 'tcp', 'tcp6':
        with contextlib.suppress(OSError):
            with open(f'/proc/net/{table}') as file:
                rows += [line.split() for line in file][1:]
    return rows


def kernel_address(address):
    """Return an address as these tables have it: 127.0.0.1, port 80 is 0100007F:0050."""
    family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
    host = socket.inet_pton(family, address[0].partition('%')[0])       # fe80::1%eth0
    words = struct.unpack(f'={len(host) // 4}I', host)
    return ''.join(f'{word:08X}' for word in words) + f':{address[1]:04X}'


def receive_queue(server_address, client_address):
    """Return Recv-Q of ss(8) at the server's side: the bytes that it has not received yet. None
    if there is no such connection."""
    ends = [kernel_address(server_address), kernel_address(client_address)]
    for row in kernel_sockets():
        if row[1:3] == ends:
            return int(row[4].rpartition(':')[2], 16)
    return None


def holders(wanted):
    """Return the processes that hold the sockets with these inode numbers."""
    found, wanted = set(), {f'socket:[{inode}]' for inode in wanted}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError):          # another user's, or it has just ended
            if any(os.readlink(f'/proc/{pid}/fd/{fd}') in wanted
                   for fd in os.listdir(f'/proc/{pid}/fd')):
                found.add(int(pid))
    return found


def listeners_cpu(address):
    """Return {pid: CPU seconds} of all that listen on that port number, whatever the address."""
    if not HAS_PROC:
        return {}
    port = address[1]
    listeners = [row for row in kernel_sockets() if row[3] == '0A' and f':{port:04X}' in row[1]]
    return {pid: cpu_seconds(pid) for pid in holders(row[9] for row in listeners)}


def server_cpu(address, before):
    """Return the CPU seconds since BEFORE of the server, or None: of the process that holds our
    connections, or whose child does; if nobody does yet, of that which listens on this address."""
    rows = [row for row in kernel_sockets() if row[1] == kernel_address(address)] if before else []
    found = {pid if pid in before else int(proc_stat(pid)[1])
             for pid in holders(row[9] for row in rows if row[3] == '01')}
    found = found or holders(row[9] for row in rows if row[3] == '0A')
    used = [cpu_seconds(pid) for pid in found]
    if not used or None in used or not found <= set(before):
        return None
    return sum(used) - sum(before[pid] for pid in found)


def handle_signals(handler):
    """Let HANDLER have the signals that end us, but ignored ones; return the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}               # only the main thread gets signals
    return {number: signal.signal(number, handler) for number in END_SIGNALS
            if signal.getsignal(number) not in (signal.SIG_IGN, None)}


def know_statuses():
    """Take SIGCHLD back if our parent ignored it: else nobody learns how our processes ended."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def end(number, frame):
    """The handler of figure and compare: on the way out each `with` block stops its server."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def defer_signals():
    """In a `with` block of this, signals that end us wait until the block is done."""
    came = []
    handlers = handle_signals(lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


class Server(contextlib.AbstractContextManager):
    """A server script that runs: its process, its address, and the lines that it prints. BEFORE is
    a command to run it by. RuntimeError is raised if no `listening` line comes in time."""
    running = set()
    python = [sys.executable]

    def __init__(self, script, *arguments, timeout=20, before=(), **options):
        self.name = ' '.join([script, *arguments])
        if '--port' not in arguments:
            arguments += '--port', '0'
        self.lines, self.seen, self.log = queue.Queue(), [], []     # log: (when it came, line)
        options = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE,
                   'stderr': subprocess.STDOUT, 'start_new_session': os.name == 'posix', **options}
        command = [*before, *self.python, os.path.join(FOLDER, script), *arguments]
        with defer_signals():           # or a Ctrl-C now could leave a server that nobody stops
            self.process = subprocess.Popen(command, **options)
            Server.running.add(self)
            self.reader = threading.Thread(target=self.collect, daemon=True)
            self.reader.start()
        self.pid = self.process.pid
        try:
            host, port = self.expect(r'listening on (\S+):(\d+)', timeout).groups()
            self.address = host.strip('[]'), int(port)
        except BaseException:
            self.stop()
            raise

    def collect(self):
        """Put each line of output into the queue, and None at its end."""
        with self.process.stdout as stream:
            for line in stream:
                now, line = time.perf_counter(), line.decode('utf-8', 'replace').rstrip()
                self.log.append((now, line))
                self.lines.put(line)
        self.lines.put(None)

    def expect(self, pattern, timeout=20):
        """Return the match of the next line that has PATTERN, or raise RuntimeError."""
        end, match = time.monotonic() + timeout, None
        while not match:
            try:
                line = self.lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                seen = ' / '.join(self.seen) or 'nothing'
                raise RuntimeError(f'{self.name} did not print {pattern!r}, but: {seen}')
            self.seen.append(line)
            match = re.search(pattern, line)
        return match

    def stop(self):
        """End the server and its children, which are of its session, and return its status."""
        with contextlib.suppress(OSError):
            if os.name == 'posix':
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.reader.join(3)
        Server.running.discard(self)
        return self.process.wait()

    def __exit__(self, *exception):
        self.stop()


def stop_servers():
    """Stop all that are left, whatever happens. From here on a signal must not disturb us."""
    handle_signals(lambda number, frame: None)
    for server in list(Server.running):
        server.stop()


# ---- rows, lists of (kind, words), are printed or drawn: paint, print_rows, draw_rows ----

KINDS = {       # kind: character, colour on a terminal (of 256), colour in an SVG
    '': (' ', 0, ''), 'title': (' ', 0, ''), 'good': (' ', 0, '#1b7f3b'),
    'bad': (' ', 0, '#c0392b'), 'copy': ('#', 182, '#d9a6d9'), 'ask': ('!', 231, '#ffffff'),
    'wait': ('.', 252, '#d4d4d4'),      # grey: nobody waits for the process
    'asleep': ('z', 117, '#8cc8f0'),    # blue: the process sleeps
    'asks': ('?', 228, '#f2e16b'),      # yellow: the process asks again and again
    'held': ('H', 215, '#f5b060'), 'socket': ('s', 215, '#f5b060'),     # orange: must wait for it
    'unaccepted': ('N', 203, '#f0756b'),    # red: it does not even know
    'memory': ('m', 114, '#84cf93'), 'delay': ('d', 114, '#84cf93'),    # green: it has it in hand
    'work': ('c', 114, '#84cf93'),
}


def paint(phases, seconds, width):
    """Return WIDTH cells for SECONDS, as parts of a row. PHASES are (kind, start, end, label)."""
    cells = [('', '')] * width
    for kind, start, end, label in phases:
        first = min(width - 1, int(start / seconds * width))
        for column in range(first, max(first + 1, min(width, round(end / seconds * width)))):
            cells[column] = kind, label
    parts = []
    for (kind, label), run in itertools.groupby(cells):
        size = len(list(run))
        label = f' {label} ' if label and len(label) < size - 2 else ''
        parts.append((kind, label.center(size, KINDS[kind][0])))
    return parts


def print_rows(rows):
    """Print rows as text, in colour on a terminal (unless NO_COLOR is set)."""
    colour = sys.stdout.isatty() and 'NO_COLOR' not in os.environ and (
        os.name == 'posix' or 'WT_SESSION' in os.environ)
    for row in rows:
        codes = [f'48;5;{KINDS[kind][1]};38;5;16' if KINDS[kind][1] else '1' if kind else ''
                 for kind, words in row]
        print(''.join(f'\033[{code}m{words}\033[0m' if colour and code else words
                      for code, (kind, words) in zip(codes, row)).rstrip())


def draw_rows(rows, title):
    """Return rows as an SVG document: coloured cells of 8 by 17 units with the same words."""
    fills = ''.join(f'.{kind}{{fill:{fill}}}' for kind, (*_, fill) in KINDS.items() if fill)
    style = ('text{font:13.2px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;'
             'fill:#1a1a1a;white-space:pre}.title{font-weight:bold}.paper{fill:#fff}' + fills +
             '@media(prefers-color-scheme:dark){.paper{fill:#16181c}text{fill:#eaeaea}'
             'text.cell{fill:#111}.good{fill:#6fd08c}.bad{fill:#ff9184}}')
    width = 8 * max(len(''.join(words for _, words in row)) for row in rows) + 16
    parts, height = [], 17 * len(rows) + 12
    for number, row in enumerate(rows):
        x, y = 8, 6 + 17 * number
        for kind, words in row:
            size = 8 * len(words)
            cell = KINDS[kind][1]
            if cell:
                parts.append(f'<rect x="{x}" y="{y}" width="{size}" height="16" class="{kind}"/>')
            if words.strip():
                shown = re.sub('[&<>]', lambda match: f'&#{ord(match[0])};', words)
                parts.append(f'<text x="{x}" y="{y + 12.5}" textLength="{size}" '
                             f'class="{"cell" if cell else kind}">{shown}</text>')
            x += size
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="100%" '
            f'style="max-width:{width}px" role="img"><title>{title}</title><style>{style}</style>\n'
            f'<rect class="paper" width="{width}" height="{height}"/>\n'
            + '\n'.join(parts) + '\n</svg>\n')


def write_file(path, words):
    """Write WORDS into the file at PATH, if one is named; exit with the reason if that fails."""
    try:
        if path is not None:
            with open(path, 'w', encoding='utf-8', newline='\n') as file:
                file.write(words)
    except (OSError, ValueError) as error:      # ValueError: a null character in the path
        sys.exit(f'cannot write to {path!a}: {reason(error)}')


HAS_GIL = getattr(sys, '_is_gil_enabled', lambda: True)()
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def machine():
    """Return what the figures depend on."""
    python = f'{platform.python_implementation()} {platform.python_version()}'
    system = ('{0.sysname} {0.release} {0.machine}'.format(os.uname()) if os.name == 'posix' else
              'Windows {0.major}.{0.minor}.{0.build}'.format(sys.getwindowsversion()))
    return (f'{python}{"" if HAS_GIL else " without a GIL"}, {system}, '
            + ('1 processor, shared by all' if PROCESSORS == 1 else f'{PROCESSORS} processors'))


def progress(step, steps, what):
    if sys.stderr.isatty():
        bar = '#' * (20 * step // steps)
        print(f'\r[{bar:<20}] {what[:56]:<56}', end='\r' if step < steps else '\n',
              file=sys.stderr, flush=True)


# ---- figure: play, look_at_bytes, one_read, who_copies, three_clients ----

MODELS = {          # name: script and arguments. figure and compare start these
    'blocking serial': ('blocking_server.py', '--mode', 'serial'),
    'blocking thread': ('blocking_server.py', '--mode', 'thread'),
    'blocking process': ('blocking_server.py', '--mode', 'process'),
    'pool of 4': ('blocking_server.py', '--mode', 'pool', '--pool-size', '4'),
    'non-blocking': ('nonblocking_server.py',),
    'non-blocking 20 ms': ('nonblocking_server.py', '--pause', '0.02'),
    'select': ('select_server.py',),
    'selectors select': ('selectors_server.py', '--suffix=', '--selector', 'select'),
    'selectors poll': ('selectors_server.py', '--suffix=', '--selector', 'poll'),
    'selectors epoll': ('selectors_server.py', '--suffix=', '--selector', 'epoll'),
    'selectors kqueue': ('selectors_server.py', '--suffix=', '--selector', 'kqueue'),
    'selectors devpoll': ('selectors_server.py', '--suffix=', '--selector', 'devpoll'),
    'asyncio': ('async_server.py', '--engine', 'asyncio'),
    'io_uring': ('async_server.py', '--engine', 'io_uring'),
    'socketserver serial': ('socketserver_server.py', '--reply', 'upper', '--mode', 'serial'),
    'socketserver thread': ('socketserver_server.py', '--reply', 'upper', '--mode', 'thread'),
    'socketserver process': ('socketserver_server.py', '--reply', 'upper', '--mode', 'process'),
}
BEST = 'selectors ' + next(each for each in ('epoll', 'kqueue', 'devpoll', 'poll', 'select')
                           if hasattr(select, each))    # the system's own
TRACE_LINE = re.compile(r' *[\d.]+ s  #(\d+) +(\S+) +(.*)')


def command(model):
    """Return the script and the arguments of a model. It may be a pool of any size."""
    if model.startswith('pool of '):
        return 'blocking_server.py', '--mode', 'pool', '--pool-size', model[8:]
    return MODELS[model]


def play(servers, clients, look=lambda begin, scenes: None, stay=0.03):
    """Play CLIENTS (name, connects at, asks at) against each server. They leave STAY seconds after
    their answer, or when all have theirs. Return {name: times since BEGIN} of each, and BEGIN."""
    scenes, threads = [{name: {} for name, *_ in clients} for _ in servers], []
    begin, leave = time.perf_counter() + 0.005, threading.Event()
    for server, scene in zip(servers, scenes):
        for name, connects, asks in clients:
            threads.append(threading.Thread(target=act, daemon=True, args=(
                server.address, begin, connects, asks, leave, stay, scene[name])))
            threads[-1].start()
    while any(thread.is_alive() for thread in threads):
        look(begin, scenes)
        time.sleep(0.002)
        if all('reply' in times for scene in scenes for times in scene.values()):
            leave.set()
    for times in [times for scene in scenes for times in scene.values() if 'error' in times]:
        raise RuntimeError(times['error'])
    return scenes, begin


def act(address, begin, connects, asks, leave, stay, times):
    """Be one client; put the time of each of its steps into TIMES."""
    try:
        time.sleep(max(0, begin + connects - time.perf_counter()))
        with socket.create_connection(address, 10) as sock:
            times.update(port=sock.getsockname()[1], connect=time.perf_counter() - begin)
            time.sleep(max(0, begin + asks - time.perf_counter()))
            sock.sendall(b'hello')
            times['ask'] = time.perf_counter() - begin
            if not sock.recv(100):
                raise OSError('the server closed the connection')
            times['reply'] = time.perf_counter() - begin
            leave.wait(stay)
    except OSError as error:
        times['error'] = reason(error)


def missing(error):     # what its server said, or the error
    return 'missing: ' + (str(error).partition(', but: ')[2] or reason(error))[:56]


WAIT_AND_COPY = r'waited (\S+ \w+), [^\n]*read #1.*?copied in (\S+ \w+): 5'
READS = [           # name, model, what its trace says of the read, the words for it
    ('blocking', 'blocking thread', r'recv +blocked (\S+ \w+), then 5', 'recv {}, the copy in it'),
    ('non-blocking', 'non-blocking', r'recv +asked (\d+) times.*?copied in (\S+ \w+): 5',
     'asked {} times, copied in {}'),
    ('select', 'select', WAIT_AND_COPY, 'select {}, recv {}'),
    ('selectors', BEST, WAIT_AND_COPY, BEST[10:] + ' {}, recv {}'),
    ('asyncio', 'asyncio', r'recv +((?:ready|in place)[^:]*): 5', '{}'),
    ('io_uring', 'io_uring', r'recv +(in place[^:]*): 5', '{}'),
]


def one_read():
    """Return the rows of the first picture. State S of /proc/PID/stat is asleep (proc(5))."""
    rows = [[('title', 'One read: the client is silent for 0.3 s, then says hello')],
            [('', f'{"":13}0        0.1      0.2      0.3 s')],
            [('', f'{"kernel":<13}'), *paint([('wait', 0, 0.3, 'waits for the data')], 0.3, 27),
             ('copy', '#'), ('', '  copy: too short for this scale')]]
    for name, model, pattern, words in READS:
        states = []

        def look(begin, scenes):
            if HAS_PROC and 'connect' in scenes[0]['A'] and 'ask' not in scenes[0]['A']:
                states.append((time.perf_counter() - begin, proc_stat(server.pid)[0]))
        try:
            with Server(*MODELS[model], '--trace') as server:
                scenes, begin = play([server], [('A', 0, 0.3)], look)
                server.expect("b'': the client closed")
            row = read_row(name, states, scenes[0]['A'], server.log, pattern, words)
        except (OSError, RuntimeError) as error:
            row = [('', missing(error))]
        rows.append([('', f'{name:<13}'), *row])
    return rows


def read_row(name, states, client, log, pattern, words):
    """Return what a model did until hello came, by its states; and what its trace says."""
    states = states or [(client['connect'], 'R' if name == 'non-blocking' else 'S')]
    ends = [now for now, state in states[1:]] + [client['ask']]
    kinds = ['asks' if state == 'R' else 'asleep' for now, state in states]
    phases = [(kind, now, end, kind) for kind, (now, state), end in zip(kinds, states, ends)]
    match = re.search(pattern, '\n'.join(line for came, line in log), re.S)
    label = words.format(*match.groups()) if match else 'its trace says nothing'
    copy = ('', ' ') if 'in place' in label else ('copy', '#')
    return [*paint(phases, 0.3, 27), copy, ('', f'  {label}')]


COMPUTE, HELLO = 0.25, 0.1      # seconds: B's answer is computed; when A says hello


def who_copies():
    """Return the rows of the second picture, and for how long A's bytes were in each socket."""
    rows = [[('title', 'Who copies while the process computes for B? A says hello at 0.1 s')],
            [('', f'{"":13}0       0.1     0.2     0.3     0.4 s')]]
    if not HAS_PROC:
        return rows[:1] + [[('', 'This needs Recv-Q of /proc/net/tcp, which only Linux has.')]], {}
    in_socket = {}
    for name, model, *_ in READS[1:]:
        try:
            in_socket[model], row = bytes_row(*look_at_bytes(*MODELS[model]))
        except (OSError, RuntimeError) as error:
            row = [('', missing(error))]
        rows.append([('', f'{name:<13}'), *row])
    return rows + [[('', f'{"":13}'), ('socket', 's'), ('', ' in the socket (Recv-Q 5)   '),
                    ('memory', 'm'), ('', " in the process's memory")]], in_socket


def look_at_bytes(*command):
    """Return samples of Recv-Q of A, [(seconds since B asked, bytes)], and when A said hello."""
    samples = []

    def look(begin, scenes):
        if 'ask' in scenes[0]['B']:
            client, start = ('127.0.0.1', scenes[0]['A']['port']), time.perf_counter()
            samples.append((start - begin, receive_queue(server.address, client) or 0))
            if time.perf_counter() - start > 0.005:     # thousands are in TIME_WAIT
                time.sleep(0.015)
    with Server(*command, '--work', str(COMPUTE)) as server:
        (scene,), _ = play([server], [('A', 0, 0.1 + HELLO), ('B', 0, 0.1)], look)
    start = scene['B']['ask']
    return [(now - start, count) for now, count in samples], scene['A']['ask'] - start


def bytes_row(samples, ask):
    """Return how long the bytes that came at ASK were in the socket, and the parts of a row."""
    last = max((now for now, count in samples if count and now > ask), default=ask)
    copied = next((now for now, count in samples if now > last), last)
    phases = [('wait', 0, ask, ''), ('socket', ask, copied, ''), ('memory', copied, 0.4, '')]
    words = 'the kernel, meanwhile' if copied < 0.75 * COMPUTE else 'recv, when it is back'
    words = f'  {(copied - ask) * 1e3:.0f} ms: {words}'
    return copied - ask, [*paint(phases, 0.4, 32), ('', words)]


LOOPS, ASYNC = ['select', BEST, 'non-blocking'], ['asyncio', 'io_uring']
GROUPS = {'serial': ['blocking serial'], 'thread': ['blocking thread'],
          'process': ['blocking process'], 'pool of 2': ['pool of 2'], 'loops': LOOPS,
          'async': ASYNC}         # models that may be one group
THREE = [('A', 0, 0.3), ('B', 0.05, 0.05), ('C', 0.1, 0.1)]
SLOW, HALF, SHOWN = 0.2, 24, 1.0    # seconds of each answer; cells and seconds of each half


def three_clients():
    """Return the rows of the third picture."""
    rows = [[('title', 'Three clients: A connects first and asks at 0.3 s, B and C ask at once')],
            [('', f'each answer:  waits {SLOW} s (--delay){"":18}computes {SLOW} s (--work)')],
            [('', f'{"":13}' + 2 * '0    0.2  0.4  0.6  0.8s waited    ')]]
    models = [model for members in GROUPS.values() for model in members]
    found = play_slow(models, '--delay')
    size = min(2, PROCESSORS)       # of those that compute, each shall find a free processor
    for start in range(0, len(models), size):
        progress(start, len(models), f'three clients: {models[start]}')
        found.update(play_slow(models[start:start + size], '--work'))
    for name, members in GROUPS.items():
        rows += group_rows(name, members, found)
    marks = [('ask', ' asks   '), ('held', ' held up by another client   '),
             ('unaccepted', ' not accepted yet'), ('delay', ' its own answer waits   '),
             ('work', ' it is computed')]
    legend = [part for kind, words in marks for part in ((kind, KINDS[kind][0]), ('', words))]
    return rows + [[('', f'{"":13}'), *legend[:6]], [('', f'{"":13}'), *legend[6:]]]


def play_slow(models, slow):
    """Play the three clients against MODELS at the same time. Return {(model, slow): the phases of
    each client, or why there are none}."""
    found, servers = {}, {}
    with contextlib.ExitStack() as stack:
        for model in models:
            try:
                server = Server(*command(model), slow, str(SLOW), '--trace')
                servers[model] = stack.enter_context(server)
            except (OSError, RuntimeError) as error:
                found[model, slow] = missing(error)
        scenes, begin = play(servers.values(), THREE)
        time.sleep(0.05)                    # for the last lines of the traces
        for (model, server), scene in zip(servers.items(), scenes):
            trace = [(came - begin, int(match[1]), match[2], match[3]) for came, match in (
                (came, TRACE_LINE.match(line)) for came, line in server.log) if match]
            found[model, slow] = {name: client_phases(scene[name], trace) for name in 'ABC'}
    return found


def client_phases(client, trace):
    """Return what a client waited for, and how long: ([(kind, start, end, label)], seconds)."""
    number, accepted = next(((number, at) for at, number, call, words in trace if call == 'accept'
                             and words.endswith(f':{client["port"]} joined')), (0, client['reply']))
    answers = [(at, words) for at, who, call, words in trace if who == number and call == 'answer'
               and not words.endswith('...')]
    done, words = answers[0] if answers else (client['reply'], '0 us')
    amount, unit = re.findall(r'([\d.]+) (us|ms|s)\b', words)[-1]
    took = float(amount) * {'us': 1e-6, 'ms': 1e-3, 's': 1}[unit]
    kind = 'work' if words.startswith('computed') else 'delay'
    ask, reply = client['ask'], client['reply']
    phases = [('wait', client['connect'], ask, ''), ('held', ask, reply, '')]
    if accepted > ask:
        phases.append(('unaccepted', ask, accepted, ''))
    end = reply if reply - done < 0.01 else done        # less is not to be seen
    return phases + [(kind, max(ask, done - took), end, ''), ('ask', ask, ask, '')], reply - ask


def group_rows(name, members, found):
    """Return the rows of models that agree as one group; of one that does not as its own."""
    rows, groups = [], []           # a group: [(model, its halves, six waits)]
    for model in members:
        halves = [found[model, slow] for slow in ('--delay', '--work')]
        why = [half for half in halves if isinstance(half, str)]
        if why:
            rows.append([('', f'{model[:12]:<13}{why[0]}')])
            continue
        waits = [half[client][1] for half in halves for client in 'ABC']
        group = next((group for group in groups if all(
            abs(a - b) < SLOW / 2 for a, b in zip(waits, group[0][2]))), None)
        if group is None:
            group = []
            groups.append(group)
        group.append((model, halves, waits))
    for group in groups:
        spread = max(max(each) - min(each) for each in zip(*(waits for *_, waits in group)))
        heads = [name if len(members) in (1, len(group)) else group[0][0], '', '']
        if len(group) > 1:
            heads[1:] = f'{len(group)} agree', f'to {spread * 1e3:.0f} ms'
        for head, client in zip(heads, 'ABC'):
            row = [('', f'{head[:10]:<11}{client} ')]
            for half in group[0][1]:
                phases, waited = half[client]
                row += [*paint(phases, SHOWN, HALF), ('', f' {waited:5.2f} s   ')]
            rows.append(row)
    return rows


def figure(args):
    """Show three pictures of the models, from a run: one read; who copies while the
    process computes; three clients whose answers are slow. It starts each server and
    takes about 15 seconds."""
    write_file(args.svg, '')        # now, before anything is measured
    progress(0, 3, 'one read')
    rows = [[('', f'{machine()}, {time.strftime("%Y-%m-%d %H:%M")}')], [], *one_read(), []]
    progress(1, 3, 'who copies')
    rows += [*who_copies()[0], [], *three_clients()]
    progress(3, 3, '')
    print_rows(rows)
    write_file(args.svg, draw_rows(rows, 'I/O models, drawn from a run'))
    return 0


# ---- compare: measuring (plan, measure_server, measure_crowd, busy, ...) ----

HOLD = 0.2                  # seconds: how long a first client keeps others waiting, if it can
SLOW_ANSWER = 0.02          # seconds: an answer that waits, or computes
STEPS = [0, 10, 100, 500, 1000]     # idle clients next to busy ones
OFFERED = 1100              # clients, more than select can watch
FEW = ['blocking thread', *LOOPS, 'non-blocking 20 ms']     # measured with one client, too
FIGURES = {         # figure: head of its column in the table (or None), unit, what it is
    'workers': ('threads|or pro-|cesses', 1, 'threads or processes'),
    'idle_bytes': ('KiB per|idle|client', 1024, 'KiB for each idle client'),
    'idle_cpu': ('CPU %|when|idle', 0.01, 'CPU in % while all are idle'),
    'cpu_100': ('us CPU|of 100|clients', 1e-6, 'us of CPU per request of 100 clients'),
    'with_1000': ('us CPU|+ 1000|idle', 1e-6, 'us of CPU per request with 1000 idle clients'),
    'second': ('client|2 waits|ms', 1e-3, 'ms that a second client waits'),
    'delay_adds': ('waiting|adds|ms', 1e-3, 'ms that an answer which waits 20 ms costs another'),
    'work_adds': ('work|adds|ms', 1e-3, 'ms that an answer which computes 20 ms costs another'),
    'with_0': (None, 1e-6, 'us of CPU per request with no idle clients'),
    'one': (None, 1e-6, 'us until one client has its answer'),
    'four_with_0': (None, 1e-6, 'us until one of 4 clients has its answer'),
    'rate_100': (None, 1, 'requests a second of 100 clients'),
    'new_cpu': (None, 1e-6, 'us of CPU per request on a new connection'),
    'fits': (None, 1e-3, 'ms that client 4 waits'),
    'full': (None, 1e-3, 'ms that client 5 waits'),
    'wait_16': (None, 1e-3, 'ms until one of 16 clients has an answer of 10 ms'),
    'held': (None, 1, f'clients held, of {OFFERED}'),
    'in_socket': (None, 1e-3, 'ms of bytes in the socket of a server that computes'),
}


def plan(quick):
    """Return the steps: (name, function, arguments). Three rounds (QUICK: two), to have ranges."""
    names, steps = [name for name, (script, *arguments) in MODELS.items()
                    if '--selector' not in arguments or hasattr(select, arguments[-1])], []
    for slow in [['--delay'], ['--work']] if quick else 3 * [['--delay', '--work']]:
        steps += [(name, measure_server, quick, slow) for name in names]
        steps += [(name, measure_pool) for name in ('pool of 1', 'pool of 16', 'blocking serial',
                                                    'blocking thread') if '--delay' in slow]
    steps += [(name, measure_limit) for name in ('select', 'selectors poll') if name in names]
    return steps + [('who copies', lambda name: (
        ('in_socket', model, seconds) for model, seconds in who_copies()[1].items()))]


def measure_server(name, quick, slow):
    """One round of a server: yields (figure, name, value)."""
    with Server(*MODELS[name]) as server:
        yield 'second', name, client_wait(server, 1)
        batch = 0.012 if quick else 0.025
        if name in FEW:
            yield 'one', name, busy(server, 1, batch, batches=9)[1]
        if name in ('blocking thread', 'pool of 4'):
            yield 'new_cpu', name, busy(server, 4, batch, reconnect=True)[2]
        if 'pool' in name:
            yield 'fits', name, client_wait(server, 3)
            yield 'full', name, client_wait(server, 4)
        elif 'serial' not in name:
            steps = STEPS if '--delay' in slow else [0, 100] + [1000] * (name in CURVE)
            yield from measure_crowd(server, name, batch, steps)
            rate, _, cpu = busy(server, 100, batch)
            yield 'rate_100', name, rate
            yield 'cpu_100', name, cpu
    for kind in slow:
        with Server(*MODELS[name], kind, str(SLOW_ANSWER)) as server:
            for _ in range(3):
                yield f'{kind[2:]}_adds', name, slow_answer_adds(server)


def measure_crowd(server, name, batch, steps):
    """What idle clients cost. Four are busy: with one, to wake the server costs more than that."""
    before, idle = memory_bytes(server.pid) if HAS_PROC else None, []
    limit = 100 if 'process' in name else file_limit() - 250
    try:
        for number in [each for each in steps if each <= limit]:
            idle += open_idle(server.address, number - len(idle))[0]
            if number and not answered(idle[-1]):
                raise RuntimeError(f'it does not hold {number} idle clients')
            if number == 100 and HAS_PROC:
                grown = memory_bytes(server.pid) - before
                yield 'idle_bytes', name, max(0, grown / number)
                yield 'workers', name, thread_count(server.pid)
                used, start = cpu_seconds(server.pid), time.perf_counter()
                time.sleep(2 * batch)
                used = cpu_seconds(server.pid) - used
                yield 'idle_cpu', name, used / (time.perf_counter() - start)
            if number in (0, 1000) or name in CURVE:
                _, latency, cpu = busy(server, 4, batch, batches=9 if name in FEW else 3)
                yield f'with_{number}', name, cpu
                yield f'four_with_{number}', name, latency
    finally:
        close_idle(idle)


def busy(server, clients, seconds, reconnect=False, batches=3):
    """Load a server in BATCHES of SECONDS. Return the requests a second, the median latency
    of the best batch (others were disturbed), and the server's CPU per request."""
    run, latencies, done = Load(server.address, 64, reconnect), [], 0
    try:
        run.open(clients)
        limit = time.perf_counter() + 5
        while len(run.answered) < clients and time.perf_counter() < limit:
            run.run(0.01)
        if len(run.answered) < clients:
            raise RuntimeError(f'it answered {len(run.answered)} of {clients} clients '
                               + ', '.join(run.errors))
        start, used = time.perf_counter(), cpu_seconds(server.pid) if HAS_PROC else 0
        for _ in range(batches):
            run.forget()
            run.run(seconds)
            done += run.done
            latencies += [percentile(run.latencies, 0.5) / 1e3] if run.done else []
        used = cpu_seconds(server.pid) - used if HAS_PROC and done else None
        # each client had a request open when the first batch began
        rate = max(0, done - clients) / (time.perf_counter() - start)
        return rate, min(latencies, default=None), used and used / done
    finally:
        run.close()


def answered(sock):
    """Return whether SOCK gets an answer to a byte within its timeout."""
    try:
        sock.sendall(b'x')
        return bool(sock.recv(100))
    except OSError:
        return False


def client_wait(server, before):
    """Return how long a client waits for its answer. BEFORE it others came, who stay for HOLD."""
    clients = [(number, 0.002 * number, 0.02) for number in range(before)]
    scenes, _ = play([server], clients + [('last', 0.04, 0.05)], stay=HOLD)
    return scenes[0]['last']['reply'] - scenes[0]['last']['ask']


def slow_answer_adds(server):
    """Return how long past SLOW_ANSWER two clients that ask together have both their answers."""
    (scene,), _ = play([server], [('A', 0, 0.01), ('B', 0, 0.01)], stay=0)
    first = min(times['ask'] for times in scene.values())
    return max(0, max(times['reply'] for times in scene.values()) - first - SLOW_ANSWER)


def measure_pool(name):
    """How long 16 clients wait for answers of 10 ms, each with a new connection per request."""
    with Server(*command(name), '--delay', '0.01') as server:
        yield 'wait_16', name, busy(server, 16, 0.1, reconnect=True)[1]


def measure_limit(name):
    """How many clients a server really holds: each of these is answered."""
    with Server(*MODELS[name]) as server:
        idle, error = open_idle(server.address, OFFERED)
        if error:
            raise RuntimeError(f'only {len(idle)} clients could connect: {error}')
        yield 'held', name, sum(map(answered, idle))
        close_idle(idle)


# ---- compare: the claims, and what decides each (CLAIMS, judge) ----

CURVE = ['blocking thread', 'selectors select', 'selectors poll', BEST, 'asyncio', 'io_uring']
HOLDS, FAILS, UNSURE, NONE = 'holds', 'does not hold', 'cannot tell', 'not measured'
CLAIMS = [          # section of the notes (and: ours), the claim, the conditions that decide it
    ('1', 'A second client of a serial server waits until the first has left',
     ['0.12 < second@blocking serial']),
    ('1', 'With a thread or a process for each client, no client blocks another',
     ['second@blocking thread < 0.1', 'second@blocking process < 0.1']),
    ('1', 'Threads take memory, and processes take more', ['2 * idle_bytes@select < '
     'idle_bytes@blocking thread', 'idle_bytes@blocking thread < idle_bytes@blocking process']),
    ('1', 'With 100 clients, threads take more CPU per request than select',
     ['cpu_100@select < cpu_100@blocking thread']),
    ('1', 'A pool has a limit: of 4 threads, client 5 waits and client 4 does not',
     ['fits@pool of 4 < 0.1', '0.12 < full@pool of 4']),
    ('1', 'A pool far too small (1 for 16 clients) is no better than one at a time',
     ['0.6 * wait_16@blocking serial < wait_16@pool of 1']),
    ('1, ours', 'It is far worse than a thread each; a pool that fits (16) is as good',
     ['4 * wait_16@blocking thread < wait_16@pool of 1',
      '0.6 * wait_16@pool of 16 < wait_16@blocking thread']),
    ('1', 'A pool that keeps its threads saves the CPU of making them',
     ['new_cpu@pool of 4 < new_cpu@blocking thread']),
    ('1', 'Connections that stay (a connection pool) save the CPU of new ones',
     ['1.5 * with_0@blocking thread < new_cpu@blocking thread']),
    ('2', 'Polling takes much CPU even when no client sends; select does not',
     ['0.5 < idle_cpu@non-blocking', 'idle_cpu@select < 0.1']),
    ('2', 'Polling with pauses (of 20 ms) answers late, and fewer requests',
     ['5 * one@blocking thread < one@non-blocking 20 ms',
      'rate_100@non-blocking 20 ms < rate_100@blocking thread']),
    ('2, ours', 'Polling without pauses answers one client as soon as a thread does',
     ['0.6 * one@non-blocking < one@blocking thread']),
    ('3', 'For one client select is not faster than a thread (not three times)',
     [f'0.3 * one@blocking thread < one@{each}' for each in ('select', BEST)]),
    ('3', 'Nor is it for one of 4 clients',
     [f'0.3 * four_with_0@blocking thread < four_with_0@{each}' for each in ('select', BEST)]),
    ('3', 'select serves many clients with one thread and little CPU',
     ['workers@select < 1.5', 'second@select < 0.1', 'idle_cpu@select < 0.1']),
    ('3', 'select and poll cost more, the more connections they watch',
     [f'1.5 * with_0@selectors {each} < with_1000@selectors {each}'
      for each in ('select', 'poll')]),
    ('3', f'{BEST[10:]} does not (it stays below twice)',
     [f'0.5 * with_1000@{BEST} < with_0@{BEST}']),
    ('3', 'select watches at most 1024 connections, poll has no such limit',
     ['0.9 * held@select < 1025', '1024 < 1.1 * held@selectors poll']),
    ('3, ours', 'A wait that blocks holds up everybody in a loop',
     [f'0.012 < delay_adds@{each}' for each in LOOPS]),
    ('4, ours', 'A wait that is awaited, or that has a thread, holds up nobody',
     [f'delay_adds@{each} < 0.01' for each in [*ASYNC, 'blocking thread']]),
    ('3', 'Computing for one client holds up everybody in a loop (async too)',
     [f'0.012 < work_adds@{each}' for each in LOOPS + ASYNC]),
    ('3, ours', 'With a GIL it holds up other threads too; never other processes',
     ['0.012 < work_adds@blocking thread'] * HAS_GIL
     + ['work_adds@blocking process < 0.012'] * (PROCESSORS > 1)),
    ('4', 'With io_uring the kernel copies while the process computes, else not',
     ['in_socket@io_uring < 0.06'] + [f'0.06 < in_socket@{each}' for each in [*LOOPS, 'asyncio']]),
    ('5, ours', 'Completion (io_uring) takes less CPU per request than asyncio',
     ['cpu_100@io_uring < cpu_100@asyncio']),
]


def judge(conditions, measured, failed):
    """Return the verdict on a claim, and the figures that decide it, in words."""
    verdicts, evidence = {HOLDS}, {}
    for condition in conditions:
        sides = []
        for side in condition.split(' < '):
            factor, _, term = side.rpartition(' * ')
            figure, _, name = term.rpartition('@')
            values = measured.get(figure, {}).get(name) if figure else [float(term)]
            if not values:
                return NONE, f'{name}: {failed.get(name, "not measured here")}'
            if figure:
                _, unit, words = FIGURES[figure]
                middle, low, high = (short(each(values) / unit)
                                     for each in (statistics.median, min, max))
                spread = f' ({low} to {high})' if low != high else ''
                evidence.setdefault(words, {})[f'{name} {middle}{spread}'] = True
            sides.append([float(factor or 1) * value for value in values])
        low, high = sides
        if max(low) * 1.1 > min(high):          # the ranges must be a tenth apart
            verdicts.add(FAILS if min(low) >= max(high) * 1.1 else UNSURE)
    verdict = next(each for each in (FAILS, UNSURE, HOLDS) if each in verdicts)
    return verdict, '; '.join(f'{words}: {", ".join(each)}' for words, each in evidence.items())


def short(value):
    """Return a number in few characters: three digits, or all that stand before the point."""
    return f'{value:.0f}' if value >= 99.5 else f'{value:.2g}' if value >= 0.01 else '<0.01'


# ---- compare: the report (table_rows, chart_rows, claim_rows) and the command ----

def table_rows(measured):
    """Return the table: medians, a row for each server."""
    columns = [(figure, head.split('|'), unit)
               for figure, (head, unit, _) in FIGURES.items() if head]

    def width(head):
        return max(map(len, head)) + 1
    rows = [[('title', f'{"":20}' + ''.join(
        f'{head[line]:>{width(head)}}' for _, head, _ in columns))] for line in range(3)]
    for name in MODELS:
        cells = [(measured.get(figure, {}).get(name), head, unit) for figure, head, unit in columns]
        if any(values for values, *_ in cells):
            rows.append([('', f'{name:<20}' + ''.join(
                f'{short(statistics.median(values) / unit) if values else "-":>{width(head)}}'
                for values, head, unit in cells))])
    return rows


def chart_rows(measured):
    """Return the growth curve: CPU per request, on a log axis, with more and more idle ones."""
    steps = [step for step in STEPS if measured.get(f'with_{step}')]
    lines = {name: [math.log(statistics.median(measured[f'with_{step}'][name])) for step in steps]
             for name in CURVE if all(measured[f'with_{step}'].get(name) for step in steps)}
    if not steps or not lines:
        return []
    low, high, gap, height = min(map(min, lines.values())), max(map(max, lines.values())), 10, 11
    grid = [[' '] * (gap * (len(steps) - 1) + 1) + [''] for _ in range(height)]
    for name, line in lines.items():
        at = [(value - low) / ((high - low) or 1) * (height - 1) for value in line]
        for column in range(gap * (len(at) - 1) + 1):
            number, part = divmod(column, gap)
            level = at[number] + (at[min(number + 1, len(at) - 1)] - at[number]) * part / gap
            grid[round(level)][column] = '.' if part else 'o'
        grid[round(at[-1])][-1] += f'  {name.split()[-1]}'
    rows = [[('title', 'us of CPU per request of 4 busy clients, with more and more idle ones')]]
    for level in reversed(range(height)):
        value = math.exp(low + (high - low) * level / (height - 1)) * 1e6
        rows.append([('', f'{short(value):>6} | {"".join(grid[level])}')])
    return rows + [[('', f'{"":9}' + ''.join(f'{step:<{gap}}' for step in steps) + 'idle clients')]]


def claim_rows(judged):
    """Return the claims, each with its verdict and the figures that decide it."""
    rows = []
    for each in judged:
        kind = {HOLDS: 'good', FAILS: 'bad'}.get(each['verdict'], 'title')
        first, *rest = textwrap.wrap(f'({each["section"]}) {each["claim"]}', 65)
        rows.append([(kind, f'{each["verdict"]:<14}'), ('', first)])
        rows += [[('', f'{"":16}{line}')] for line in rest + textwrap.wrap(each['evidence'], 63)]
    return rows


def compare(args):
    """Measure every server of the folder, and judge the claims."""
    write_file(args.svg, '')        # now, before anything is measured
    measured, failed, status, steps = {}, {}, 0, plan(args.quick)
    try:
        for number, (name, function, *arguments) in enumerate(steps):
            progress(number, len(steps), name)
            try:
                for figure, model, value in [] if name in failed else function(name, *arguments):
                    if value is not None:
                        measured.setdefault(figure, {}).setdefault(model, []).append(value)
            except (OSError, RuntimeError) as error:
                failed[name] = str(error).partition(', but: ')[2] or reason(error)
        progress(len(steps), len(steps), '')
    except SystemExit as stop:
        status = stop.code
    report(args, measured, failed, partial=bool(status))
    return status or (0 if measured else 1)


def report(args, measured, failed, partial):
    """Print everything as JSON, or as rows."""
    judged = [dict(zip(('section', 'claim', 'conditions', 'verdict', 'evidence'),
                       (*claim, *judge(claim[2], measured, failed)))) for claim in CLAIMS]
    date = time.strftime('%Y-%m-%d %H:%M')
    if args.json:
        print(json.dumps({'machine': machine(), 'date': date, 'quick': args.quick,
                          'partial': partial, 'measured': measured, 'claims': judged,
                          'not_measured': failed}, indent=1))
    counts = collections.Counter(each['verdict'] for each in judged)
    words = [f'{counts[each]} {each}' for each in (FAILS, UNSURE, NONE) if counts[each]]
    words = ', '.join([f'{counts[HOLDS]} of {len(judged)} claims hold here', *words])
    head = [[('title', words)], *[[('bad', 'PARTIAL: it was interrupted.')]] * partial]
    rows = [*head, [('', f'{machine()}, {date}')], [], *table_rows(measured), [],
            *chart_rows(measured), [], *claim_rows(judged), []]
    for name, why in failed.items():
        rows += [[('', line)] for line in textwrap.wrap(f'not measured: {name}: {why}', 78)]
    rows += head
    if not args.json:
        print_rows(rows)
    write_file(args.svg, draw_rows(rows, 'I/O models, measured'))


# ---- arguments and start ----

def number_between(kind, low, high):
    """Return an argparse type: a number of that KIND from LOW to HIGH (so neither nan nor inf)."""
    def number(text):
        if low <= kind(text) <= high:
            return kind(text)
        raise argparse.ArgumentTypeError(f'{text} is not between {low} and {high}')
    return number


def parse_arguments(words):
    """Return the arguments; without a command they are those of chat."""
    form = {'formatter_class': argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **form)
    commands = parser.add_subparsers(dest='command', metavar='chat | load | figure | compare')
    chat_, load_, figure_, compare_ = (
        commands.add_parser(each.__name__, help=words, **form,
                            description=(each.__doc__ or '').replace('\n    ', '\n'))
        for each, words in ((chat, 'talk to a server (the default)'), (load, 'load a server'),
                            (figure, 'three pictures of the models'),
                            (compare, 'measure every server, judge every claim')))
    for command in chat_, load_:
        command.add_argument('--host', default='127.0.0.1', help='default %(default)s')
        command.add_argument('--port', type=number_between(int, 1, 65535), default=8080,
                             help='default %(default)s')
    chat_.add_argument('-m', dest='message', action='append', metavar='TEXT',
                       help='send TEXT, print the reply, leave; may be repeated')
    chat_.add_argument('--quiet', type=number_between(float, 0.001, 3600), default=0.2,
                       metavar='SECONDS', help='silence that ends a reply (default %(default)s)')
    add = load_.add_argument
    add('--connections', type=number_between(int, 1, 100000), default=100, metavar='N',
        help='connections that send requests all the time (default %(default)s)')
    add('--seconds', type=number_between(float, 0.01, 86400), default=5, help='default %(default)s')
    add('--size', type=number_between(int, 1, 1 << 28), default=64, metavar='BYTES',
        help='the size of each message (default %(default)s)')
    add('--idle', type=number_between(int, 0, 100000), default=0, help='others that send nothing')
    add('--reconnect', action='store_true', help='a new connection for each request')
    compare_.add_argument('--quick', action='store_true', help='rougher, in a third of the time')
    for command in load_, compare_:
        command.add_argument('--json', action='store_true', help='print the figures as JSON')
    for command in figure_, compare_:
        command.add_argument('--svg', metavar='FILE', help='also write it as a picture')
    if not words or words[0].startswith('-') and words[0] not in ('-h', '--help'):
        words = ['chat', *words]
    args, unknown = parser.parse_known_args(words)
    if unknown:
        commands.choices[args.command].error(f'unrecognized arguments: {" ".join(unknown)}')
    return args


def main():
    if not sys.stderr:          # closed (2>&-): what is meant for it goes nowhere
        sys.stderr = open(os.devnull, 'w')
    if not sys.stdout:
        sys.exit('cannot write to standard output: it is closed')
    for stream in sys.stdin, sys.stdout, sys.stderr:    # a console may not know every character
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='surrogateescape' if stream is sys.stdin else
                               'backslashreplace')
    try:
        args = parse_arguments(sys.argv[1:])
        commands = {'chat': chat, 'load': load, 'figure': figure, 'compare': compare}
        handle_signals(end)
        know_statuses()
        try:
            status = commands[args.command](args)
        finally:
            stop_servers()
        sys.stdout.flush()      # here, so that an error of it is seen
        sys.exit(status)
    except BrokenPipeError:     # nobody reads our output any more: Python must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (OSError, MemoryError) as error:
        sys.exit(f'cannot go on: {reason(error)}')


if __name__ == '__main__':
    main()

"""The client of all servers: talk to one, load it, or compare them all.

    python client.py                    chat: type a line, see the answer
                                        (`exit` or Ctrl-D leaves)
    python client.py -m hello -m bye    send these, print the answers, leave
    python client.py < file > copy      send every byte, half-close, and write
                                        every byte that comes back
    python client.py load               requests a second, and the time of each
    python client.py figure             draw the notes' figures from a run
    python client.py compare            measure every server, and check every
                                        claim of the notes (section 5)

Each has more to say: python client.py chat --help, and so on.

This file holds several programs, one after the other. To follow the notes,
read only *chat*, the first part. The others measure the servers.
"""
import argparse
import codecs
import collections
import contextlib
import errno
import json
import math
import os
import queue
import random
import re
import select
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time

STEP_SECONDS = 0.5      # on Windows Ctrl-C interrupts no blocking call, so we wait in steps
HAS_PROC = os.name == 'posix' and os.path.isdir('/proc/self')       # Linux
FOLDER = os.path.dirname(os.path.abspath(__file__))


# ---- chat: connect, chat, converse, typed_lines, exchange, pipe ----

def connect(host, port):
    """Return a connection to HOST and PORT, or exit with status 1 and the reason."""
    try:
        return socket.create_connection((host, port))
    except (OSError, UnicodeError) as error:
        sys.exit(f'cannot connect to host {host!a}, port {port}: {reason(error)}')


def reason(error):
    """Return what an exception says, without its number."""
    return getattr(error, 'strerror', None) or str(error)


def format_address(address):
    host, port = address[:2]
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def chat(args):
    """Talk to a server: by hand at a terminal, with -m, or as a pipe."""
    sock = connect(args.host, args.port)
    if args.message:
        converse(sock, (os.fsencode(each) for each in args.message), args.quiet)
    elif at_terminal():
        print(f'connected to {format_address(sock.getpeername())} '
              f'from {format_address(sock.getsockname())}; exit or Ctrl-D leaves', flush=True)
        converse(sock, typed_lines(sock, args.quiet), args.quiet)
    else:
        pipe(sock)
    close_gracefully(sock)


def at_terminal():
    """Whether standard input is a terminal (on Windows NUL claims to be one too)."""
    if not sys.stdin or not sys.stdin.isatty():
        return False
    return os.name == 'posix' or 'Console' in type(sys.stdin.buffer.raw).__name__


def converse(sock, messages, quiet):
    """Send one message after the other, and show what comes back."""
    for message in messages:
        if message.strip() == b'exit':
            with contextlib.suppress(OSError):
                sock.send(b'exit')
            return
        if message.strip():
            show_reply(sock, message, quiet)


def typed_lines(sock, quiet):
    """Yield the lines that a person types, until Ctrl-D.

    What the server says meanwhile is shown at once, and if it closes the connection, that is
    noticed at once too. (On Windows select takes only sockets: there the next line notices it.)
    """
    stdin = open(0, 'rb', buffering=0, closefd=False)
    while True:
        print('>>: ', end='', flush=True)
        if os.name == 'posix' and sock in select.select([stdin, sock], [], [])[0]:
            print()
            show_reply(sock, b'', quiet)
            continue
        line = stdin.readline()
        if not line:
            print()
            return
        yield line.strip()


def show_reply(sock, message, quiet):
    """Send MESSAGE, and show the reply as it comes; exit if the server closes the connection."""
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    shown = False
    for piece in exchange(sock, message, quiet):
        if piece:
            show(piece, decoder)
            shown = True
    if shown:
        show(b'', decoder, end='\n')
    if not piece:
        sys.exit('the server has closed the connection')


def show(piece, decoder, end=''):
    """Print a piece of a reply: to a terminal as text, elsewhere byte for byte.

    DECODER keeps the first half of a character until the second half comes. A control character
    is printed as an escape, so that no server can play tricks on the terminal.
    """
    if sys.stdout and sys.stdout.isatty():
        text = decoder.decode(piece, final=bool(end))
        print(''.join(each if each.isprintable() else each.encode('unicode_escape').decode()
                      for each in text), end=end, flush=True)
    elif sys.stdout:
        sys.stdout.buffer.write(piece + end.encode())
        sys.stdout.buffer.flush()


def exchange(sock, message, quiet):
    """Send MESSAGE, and yield each piece of the reply until nothing has come for QUIET seconds.

    The last piece is b'' if the server has closed the connection. We read while we send: a server
    may answer the beginning before it has read the end, and both would wait for ever.
    """
    sock.setblocking(False)
    unsent, piece = memoryview(message), None
    while piece != b'':
        timeout = STEP_SECONDS if unsent or piece is None else quiet
        rl, wl, xl = select.select([sock], [sock] if unsent else [], [], timeout)
        if not (rl or unsent or piece is None):
            return
        try:
            if wl:
                unsent = unsent[sock.send(unsent):]
            if not rl:
                continue
            piece = sock.recv(65536)
        except BlockingIOError:
            continue
        except OSError:         # the connection is lost
            piece = b''
        yield piece


def pipe(sock):
    """Send standard input to the server and write what comes back to standard output, at once."""
    sent, received, data = [], 0, None
    threading.Thread(target=send_stdin, args=(sock, sent), daemon=True).start()
    while data != b'':
        if not select.select([sock], [], [], STEP_SECONDS)[0]:
            continue
        try:
            data = sock.recv(65536)
        except OSError:             # a reset: even if we have sent all, not all was answered
            sent, data = [], b''
        if data:
            received += len(data)
            write_stdout(data)
    if not sent:
        exit_now('the server has closed the connection before it had everything', 1)
    if received < sent[0]:          # more is fine: selectors_server.py adds a suffix
        exit_now(f'the server has sent back {received} of {sent[0]} bytes, '
                 'then closed the connection', 1)
    exit_now()


def send_stdin(sock, sent):
    """Send all of standard input, append to SENT how many bytes it was, then half-close.

    The server answers what it has, and closes. If it is gone, the main thread sees that too.
    """
    count = 0
    with contextlib.suppress(OSError):
        while True:
            data = read_stdin()
            if not data:
                break
            sock.sendall(data)
            count += len(data)
        sent.append(count)
        sock.shutdown(socket.SHUT_WR)


def read_stdin():
    """Return the next bytes of standard input, b'' at its end."""
    while sys.stdin:
        try:
            return os.read(0, 65536)
        except BlockingIOError:     # somebody has made it non-blocking
            select.select([0], [], [])
        except OSError as error:
            exit_now(f'cannot read standard input: {reason(error)}', 1)
    return b''


def write_stdout(data):
    """Write DATA to standard output, without Python's buffer.

    A thread that is blocked in Python's buffered write could hang our exit.
    """
    if not sys.stdout:
        exit_now('cannot write to standard output: it is closed', 1)
    while data:
        try:
            data = data[os.write(1, data):]
        except BlockingIOError:     # somebody has made it non-blocking
            select.select([], [1], [])
        except BrokenPipeError:     # nobody reads our output any more (`| head -c 10`)
            exit_now(status=1)
        except OSError as error:
            exit_now(f'cannot write to standard output: {reason(error)}', 1)


def close_gracefully(sock):
    """Half-close, wait up to a second for the server to do the same, then close."""
    with contextlib.suppress(OSError):
        sock.settimeout(1)
        sock.shutdown(socket.SHUT_WR)
        end = time.monotonic() + 1
        while time.monotonic() < end and sock.recv(65536):
            pass
    sock.close()


def exit_now(line=None, status=0):
    """Exit at once: a thread may be blocked on standard input, and nothing else ends that."""
    if line is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
    os._exit(status)


# ---- load: LoadGenerator, load, learn_suffix, open_idle, close_idle, format_report ----

# Messages are pieces of these random bytes: hardly two are alike.
PAYLOAD = random.Random(1).getrandbits(8 << 20).to_bytes(1 << 20, 'little')
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Connection:
    """One connection of the load, and the request that is under way on it.

    sock        the socket, or None when it is closed
    number      the number of this connection, from 0
    requests    how many requests were begun on it
    started     when this request began: with --reconnect before connecting
    unsent      what is still to be sent of the message
    expected    the answer that is right
    received    what has come of the answer
    answered    whether any request was answered at all
    """
    __slots__ = ('sock', 'number', 'requests', 'started', 'unsent', 'expected', 'received',
                 'answered')

    def __init__(self, number):
        self.sock, self.number, self.requests, self.answered = None, number, 0, False
        self.unsent = b''


class LoadGenerator:
    """Connections that each send a message, check its answer byte for byte, and send the next.

    `latencies` are in seconds; `errors` counts by name what went wrong. The selector stores with
    each socket the method to call when it is ready, and the connection.
    """

    def __init__(self, address, size, suffix=b'', reconnect=False):
        self.address, self.size, self.suffix, self.reconnect = address, size, suffix, reconnect
        # no message may contain the suffix: its bytes are left out
        self.payload = PAYLOAD.translate(None, suffix + suffix.lower())
        self.payload *= math.ceil(2 * size / len(self.payload))
        self.upper = self.payload.upper()
        self.sel = selectors.DefaultSelector()
        self.latencies, self.errors, self.connections = [], collections.Counter(), []

    def run(self, connections, seconds, show=None):
        """Load the server from so many CONNECTIONS for so many SECONDS; return how long it took.

        SHOW is called twice a second with the number of answers and the seconds so far.
        """
        start = now = shown = time.perf_counter()
        self.connections = [Connection(number) for number in range(connections)]
        for connection in self.connections:
            self.open_connection(connection)
        while now < start + seconds and self.sel.get_map():
            for key, mask in self.sel.select(min(0.2, start + seconds - now)):
                method, connection = key.data
                method(connection, mask)
            now = time.perf_counter()
            if show and now - shown > 0.5:
                shown = now
                show(len(self.latencies), now - start)
        return max(time.perf_counter() - start, 1e-6)       # never 0: others divide by it

    def open_connection(self, connection):
        """Begin to connect. The first request follows as soon as the connection is there."""
        connection.started = time.perf_counter()
        try:
            connection.sock = socket.socket(self.address[0])
            connection.sock.setblocking(False)
            status = connection.sock.connect_ex(self.address[1])
            if status not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                raise OSError(status, os.strerror(status))
            self.sel.register(connection.sock, WRITE, (self.on_connected, connection))
        except (OSError, ValueError) as error:
            self.fail(connection, error)

    def on_connected(self, connection, mask):
        status = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self.fail(connection, OSError(status, os.strerror(status)))
        else:
            self.watch(connection, READ)
            self.send_request(connection)

    def watch(self, connection, events):
        self.sel.modify(connection.sock, events, (self.on_ready, connection))

    def send_request(self, connection):
        """Begin the next request."""
        start = connection.number * 7919 + connection.requests * 104729
        start %= len(self.payload) - self.size + 1
        connection.requests += 1
        connection.unsent = memoryview(self.payload)[start:start + self.size]
        connection.expected = self.upper[start:start + self.size]
        connection.received = bytearray()
        if not self.reconnect:
            connection.started = time.perf_counter()
        self.send(connection)
        if connection.unsent and connection.sock:
            self.watch(connection, READ | WRITE)

    def send(self, connection):
        """Send what the kernel takes now."""
        try:
            connection.unsent = connection.unsent[connection.sock.send(connection.unsent):]
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(connection, error)

    def on_ready(self, connection, mask):
        """The socket is ready: send more of the message, or receive more of the answer."""
        if mask & WRITE:
            self.send(connection)
            if connection.sock and not connection.unsent:
                self.watch(connection, READ)
        if mask & READ and connection.sock:
            try:
                data = connection.sock.recv(65536)
            except OSError as error:
                self.fail(connection, error)
                return
            if data:
                connection.received += data
                self.check_answer(connection)
            else:
                self.fail(connection, 'closed by the server')

    def check_answer(self, connection):
        """If the answer is complete, note how long it took, and begin the next request."""
        answer = connection.received
        if self.suffix and len(answer) >= self.size:
            # the server adds a suffix to each piece of the message that it has received
            if len(answer) > self.size * (1 + len(self.suffix)):
                self.fail(connection, 'an answer that is too long')
                return
            answer = answer.replace(self.suffix, b'') if answer.endswith(self.suffix) else b''
        if len(answer) < self.size:
            return
        self.latencies.append(time.perf_counter() - connection.started)
        connection.answered = True
        if answer != connection.expected:
            self.errors['wrong answer'] += 1
        if self.reconnect:
            self.close_connection(connection)
            self.open_connection(connection)
        else:
            self.send_request(connection)

    def fail(self, connection, error):
        """Count the error and give this connection up; the others go on."""
        self.errors[reason(error)] += 1
        self.close_connection(connection)

    def close_connection(self, connection):
        if connection.sock:
            if connection.sock in self.sel.get_map():
                self.sel.unregister(connection.sock)
            connection.sock.close()
            connection.sock = None

    def close(self):
        for connection in self.connections:
            self.close_connection(connection)
        self.sel.close()


def load(args):
    """Load a server, and report."""
    raise_file_limit(args.connections + args.idle + 20)
    if selectors.DefaultSelector is selectors.SelectSelector and args.connections > 500:
        sys.exit('this client has only select here, which watches 512 sockets: '
                 'take at most 500 --connections')
    with connect(args.host, args.port) as sock:     # a name may have several addresses
        address = sock.family, sock.getpeername()   # this one answers
    suffix = learn_suffix(args.host, args.port)
    idle, idle_errors = open_idle(address, args.idle)
    generator = LoadGenerator(address, args.size, suffix, args.reconnect)
    generator.errors.update(idle_errors)
    local = args.host in ('127.0.0.1', '::1', 'localhost')
    report = measure_load(generator, args, find_listener_pid(args.port) if local else None)
    generator.close()
    generator.errors.update(close_idle(idle))
    report['errors'] = dict(generator.errors)
    print(json.dumps(report) if args.json else format_report(report, args), flush=True)
    return 1 if generator.errors or not generator.latencies else 0


def measure_load(generator, args, pid):
    """Run the load, and return its figures; PID is the server's, where it is known."""
    on_terminal = sys.stderr and sys.stderr.isatty()
    before, own = cpu_seconds(pid), time.process_time()
    seconds = generator.run(args.connections, args.seconds, show_rate if on_terminal else None)
    own = time.process_time() - own
    used = difference(cpu_seconds(pid), before)
    if on_terminal:
        print(file=sys.stderr)
    return summary(generator, seconds, args, used, own)


def show_rate(done, elapsed):
    print(f'\r{elapsed:5.1f} s  {done / elapsed:9.0f} requests/s ', end='', file=sys.stderr,
          flush=True)


def resolve(host, port):
    """Return the address family and the address of HOST and PORT, or exit with the reason."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return found[0], found[4]
    except (OSError, UnicodeError) as error:
        sys.exit(f'cannot find host {host!a}: {reason(error)}')


def learn_suffix(host, port):
    """Return what this server adds to each answer: selectors_server.py adds something."""
    reply, end = b'', time.monotonic() + 5
    with connect(host, port) as sock:
        sock.settimeout(5)
        try:
            sock.sendall(b'suffix?')
            if not sock.recv(1, socket.MSG_PEEK):
                raise OSError('it closed the connection')
        except OSError as error:
            sys.exit(f'no answer from {host}, port {port}: {reason(error)} '
                     '(is it busy with another client, or waiting for an operator?)')
        for piece in exchange(sock, b'', 0.1):
            reply += piece
            if len(reply) > 65536 or time.monotonic() > end:
                break
    suffix = reply[len(b'suffix?'):]
    if len(reply) > 65536 or not PAYLOAD.translate(None, suffix + suffix.lower()):
        sys.exit(f'{host}, port {port}, adds {len(suffix)} bytes to an answer of 7: '
                 'that is none of these servers')
    return suffix


def open_idle(address, number):
    """Return NUMBER connections that send nothing, and count the errors of those that failed."""
    socks, errors = [], collections.Counter()
    for _ in range(number):
        sock = None
        try:
            sock = socket.socket(address[0])
            sock.settimeout(5)
            sock.connect(address[1])
            socks.append(sock)
        except OSError as error:
            errors[f'idle: {reason(error)}'] += 1
            if sock:
                sock.close()
    return socks, errors


def close_idle(socks):
    """Close the idle connections, and count those that the server had not kept."""
    errors = collections.Counter()
    for sock in socks:
        try:
            sock.setblocking(False)
            errors['idle: closed by the server'] += sock.recv(1) == b''
        except BlockingIOError:
            pass
        except OSError as error:
            errors[f'idle: {reason(error)}'] += 1
        sock.close()
    return +errors


def summary(generator, seconds, args, used, own):
    """Return the figures of a load, in ms or us as the names say.

    USED and OWN are the CPU seconds of the server (or None) and of this client.
    """
    latencies, done = sorted(generator.latencies), len(generator.latencies)
    report = {'connections': args.connections, 'idle': args.idle, 'size': args.size,
              'reconnect': args.reconnect, 'suffix': os.fsdecode(generator.suffix),
              'seconds': seconds, 'requests': done, 'requests_per_second': done / seconds}
    for label, share in ('p50', 0.5), ('p95', 0.95), ('p99', 0.99), ('max', 1):
        rank = max(0, math.ceil(share * done) - 1)
        report[f'{label}_ms'] = latencies[rank] * 1e3 if done else None
    report['never_answered'] = sum(not each.answered for each in generator.connections)
    known = done and used is not None
    report['server_cpu_us_per_request'] = used / done * 1e6 if known else None
    report['client_cpu_us_per_request'] = own / done * 1e6 if done else None
    report['client_cpu_percent'] = 100 * own / seconds
    return report


def format_report(report, args):
    """Return the report of a load for people."""
    idle = f', {args.idle} additional idle ones' if args.idle else ''
    lines = [f'{args.host}, port {args.port}: {args.connections} connections{idle}, '
             f'{args.size} bytes, {report["seconds"]:.1f} s'
             + (', a new connection for each request' if args.reconnect else '')]
    rate = report['requests_per_second']
    lines.append(f'requests   {report["requests"]}: {rate:.0f} a second')
    if report['requests']:
        lines += format_costs(report)
    if report['never_answered']:
        lines.append(f'waiting    {report["never_answered"]} connections got no answer at all')
    errors = ', '.join(f'{count} x {each}' for each, count in report['errors'].items())
    lines.append(f'errors     {errors or "none"}')
    if report['suffix']:
        lines.append(f'suffix     {report["suffix"]!a} after each answer (learnt)')
    return '\n'.join(lines)


def format_costs(report):
    """Return the lines of a report about latency and CPU."""
    latencies = (f'{each} {report[each + "_ms"]:.3f} ms' for each in ('p50', 'p95', 'p99', 'max'))
    server = report['server_cpu_us_per_request']
    cpu = f'server {server:.1f} us per request, ' if server is not None else ''
    cpu += f'this client {report["client_cpu_us_per_request"]:.1f} us'
    lines = ['latency    ' + ', '.join(latencies), 'CPU        ' + cpu]
    if report['client_cpu_percent'] > 90:
        lines.append(f'           this client used {report["client_cpu_percent"]:.0f} % of a '
                     'processor, so it limits the rate.\n           '
                     'To compare servers, take the CPU per request.')
    return lines


def raise_file_limit(needed):
    """Raise our limit of open files; exit with status 1 if NEEDED are not allowed."""
    limit = file_limit()
    if limit is not None and limit < needed:
        sys.exit(f'{needed} open files are needed, and {limit} are allowed: '
                 'raise the hard limit (ulimit -Hn), or take fewer connections')


def file_limit():
    """Raise our limit of open files as far as allowed, and return it; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, 10240):        # macOS does not take "unlimited" here
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
        except (ValueError, OSError):
            pass
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# ---- what a server costs: process_tree, cpu_seconds, memory_bytes, thread_count ----
# On Linux /proc says it, on other POSIX systems ps. On Windows these return None.

def process_tree(pid):
    """Return PID and its children (the servers have no grandchildren)."""
    if HAS_PROC:
        children = []
        for each in filter(str.isdigit, os.listdir('/proc')):
            with contextlib.suppress(OSError):      # it has just ended
                if int(proc_stat(each)[1]) == pid:
                    children.append(int(each))
        return [pid] + children
    pairs = (line.split() for line in ps('-axo', 'pid=,ppid='))
    return [pid] + [int(child) for child, parent in pairs if int(parent) == pid]


def proc_stat(pid):
    """Return the fields of /proc/PID/stat from the third, `state`, on (see proc(5)).

    They follow the last parenthesis: the second field is a name, and may contain anything.
    """
    with open(f'/proc/{pid}/stat') as file:
        return file.read().rpartition(')')[2].split()


def ps(*arguments):
    """Return the lines that ps prints."""
    ended = subprocess.run(['ps', *arguments], stdout=subprocess.PIPE, text=True)
    return ended.stdout.splitlines()


def ps_tree(field, pid):
    """Return one field of PID and its children, a string for each."""
    return ps('-o', f'{field}=', '-p', ','.join(map(str, process_tree(pid))))


def cpu_seconds(pid):
    """Return the seconds of CPU that PID and its children have used, or None."""
    if pid is None or os.name != 'posix':
        return None
    if HAS_PROC:
        try:
            reaped = sum(map(int, proc_stat(pid)[13:15]))   # of children that have ended
        except OSError:
            return None                 # the server has ended
        return reaped / os.sysconf('SC_CLK_TCK') + sum(map(cpu_clock, process_tree(pid)))
    total = 0
    for line in ps_tree('time', pid):
        parts = re.findall(r'[\d.]+', line)         # [[days-]hours:]minutes:seconds
        units = 1, 60, 3600, 86400
        total += sum(float(part) * unit for part, unit in zip(reversed(parts), units))
    return total


def cpu_clock(pid):
    """Return the seconds of CPU of one process, to the nanosecond.

    Its clock has the number that clock_getcpuclockid(3) computes.
    """
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0                        # it has just ended


def memory_bytes(pid):
    """Return the bytes of memory of PID and its children, or None.

    On Linux each shared page counts once (Pss); elsewhere it counts in every process (resident).
    """
    if os.name != 'posix':
        return None
    if HAS_PROC:
        return sum(map(pss, process_tree(pid)))
    return sum(int(line) * 1024 for line in ps_tree('rss', pid))


def pss(pid):
    try:
        with open(f'/proc/{pid}/smaps_rollup') as file:     # Linux 4.14
            return int(re.search(r'^Pss: *(\d+)', file.read(), re.M)[1]) * 1024
    except OSError:
        return 0


def thread_count(pid):
    """Return how many threads PID and its children have, or None."""
    if not HAS_PROC:
        return None
    total = 0
    for each in process_tree(pid):
        with contextlib.suppress(OSError):          # it has just ended
            total += len(os.listdir(f'/proc/{each}/task'))
    return total


def difference(after, before):
    return None if after is None or before is None else after - before


# ---- what the kernel knows of a connection: find_listener_pid, receive_queue (Linux only) ----

def kernel_sockets(table):
    """Return the rows of /proc/net/TABLE, each split into its fields; none where it is missing."""
    try:
        with open(f'/proc/net/{table}') as file:
            return [line.split() for line in file][1:]
    except OSError:
        return []


def find_listener_pid(port):
    """Return the process that listens on PORT of this machine, or None if that is not known."""
    sockets = [f'socket:[{row[9]}]' for row in kernel_sockets('tcp') + kernel_sockets('tcp6')
               if row[3] == '0A' and int(row[1].rpartition(':')[2], 16) == port]
    for pid in filter(str.isdigit, os.listdir('/proc') if sockets else []):
        with contextlib.suppress(OSError):          # another user's, or it has just ended
            folder = f'/proc/{pid}/fd'
            if any(os.readlink(f'{folder}/{fd}') in sockets for fd in os.listdir(folder)):
                return int(pid)
    return None


def receive_queue(server_address, client_address):
    """Return how many bytes of a connection the kernel holds until the server receives them.

    It is Recv-Q of ss(8) at the server's side. The addresses are what getpeername() and
    getsockname() of the client's socket return. Return None if there is no such IPv4 connection.
    """
    ends = [kernel_address(server_address), kernel_address(client_address)]
    for row in kernel_sockets('tcp'):
        if row[1:3] == ends:
            return int(row[4].rpartition(':')[2], 16)
    return None


def kernel_address(address):
    """Return an IPv4 address as /proc/net/tcp writes it: 127.0.0.1:8083 is 0100007F:1F93."""
    host, port = address[:2]
    if ':' in host:
        return None
    return f'{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}'


# ---- starting a server script: DeferSignals, Server (test_all.py uses this too) ----

class DeferSignals:
    """With this, signals that end us wait until the block is done.

    Only the main thread gets signals. An ignored signal stays ignored (nohup): a child inherits
    that, but not a handler.
    """
    names = 'SIGINT', 'SIGTERM', 'SIGHUP'       # Windows has no SIGHUP

    def __enter__(self):
        self.came, self.handlers = [], {}
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in self.names if hasattr(signal, name)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.handlers[number] = signal.signal(number, self.defer)

    def defer(self, number, frame):
        self.came.append(number)

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        for number in self.came:
            signal.raise_signal(number)


class Server:
    """A server script that runs: its process, its address, and the lines that it prints.

    It takes a free port if ARGUMENTS name none. BEFORE is a command to run it by. The address is
    read from its `listening` line; RuntimeError, with what it said instead, is raised if none
    comes within TIMEOUT seconds. At the end of a `with` block the server is stopped.
    """
    running = set()

    def __init__(self, script, *arguments, timeout=10, before=(), **options):
        pipe_out = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        options = {'stdin': subprocess.DEVNULL, **pipe_out, **options}
        command = [*before, sys.executable, os.path.join(FOLDER, script), *arguments]
        if '--port' not in arguments:
            command += ['--port', '0']
        self.name = ' '.join([script, *arguments])
        self.lines, self.seen, self.readers = queue.Queue(), [], []
        with DeferSignals():            # or a Ctrl-C now could leave a server that nobody stops
            self.process = subprocess.Popen(command, **options)
            Server.running.add(self)
        self.pid = self.process.pid
        streams = [each for each in (self.process.stdout, self.process.stderr) if each]
        self.open_streams = len(streams)
        for stream in streams:
            self.readers.append(threading.Thread(target=self.collect, args=(stream,), daemon=True))
            self.readers[-1].start()
        try:
            host, port = self.expect(r'listening on (\S+):(\d+)', timeout).groups()
            self.address = host.strip('[]'), int(port)
        except BaseException:
            self.stop()
            raise

    def collect(self, stream):
        """Put each line of STREAM into the queue, and None at its end."""
        with stream:
            for line in stream:
                self.lines.put(line.decode('utf-8', 'replace').rstrip())
        self.lines.put(None)

    def expect(self, pattern, timeout=10):
        """Return the match of the next line that has PATTERN.

        RuntimeError is raised if none comes within TIMEOUT seconds.
        """
        end, match = time.monotonic() + timeout, None
        while not match and self.open_streams:
            try:
                line = self.lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                break
            if line is None:
                self.open_streams -= 1
            else:
                self.seen.append(line)
                match = re.search(pattern, line)
        if not match:
            seen = ' / '.join(self.seen) or 'nothing'
            raise RuntimeError(f'{self.name} did not print {pattern!r}, but: {seen}')
        return match

    def stop(self):
        """End the server and return its status. SIGTERM comes first: so it ends its children."""
        if self.process.poll() is None:
            self.process.terminate()
            for reader in self.readers:     # they end when it does, sooner than process.wait does
                reader.join(3)
            try:
                self.process.wait(0.1 if self.readers else 3)
            except subprocess.TimeoutExpired:
                self.process.kill()
        Server.running.discard(self)
        return self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()


# ---- figure: playing the scenes (play_figure, play_scene) ----

LANES = [       # name, script, arguments
    ('blocking serial', 'blocking_server.py', ['--mode', 'serial']),
    ('blocking thread', 'blocking_server.py', ['--mode', 'thread']),
    ('blocking process', 'blocking_server.py', ['--mode', 'process']),
    ('blocking pool of 2', 'blocking_server.py', ['--mode', 'pool', '--pool-size', '2']),
    ('nonblocking', 'nonblocking_server.py', []),
    ('select', 'select_server.py', []),
    ('selectors', 'selectors_server.py', []),
    ('async io_uring', 'async_server.py', ['--engine', 'io_uring']),
    ('async asyncio', 'async_server.py', ['--engine', 'asyncio']),
    ('socketserver thread', 'socketserver_server.py', ['--mode', 'thread', '--reply', 'upper']),
]
SLOW_SECONDS = 0.2          # seconds: each answer of the servers with --delay and --work
ONE_READ = [('A', 0, 0.3, 0.1)]         # name, connects at, asks at, stays after its answer
THREE_CLIENTS = [('A', 0, 0.3, 0.05), ('B', 0.05, 0.05, 0.05), ('C', 0.1, 0.1, 0.05)]
SCENES = {
    'read': (ONE_READ, []),
    'delay': (THREE_CLIENTS, ['--delay', str(SLOW_SECONDS)]),
    'work': (THREE_CLIENTS, ['--work', str(SLOW_SECONDS)]),
}
TRACE_LINE = re.compile(r' *(\d+\.\d+) s  (#\d+|-) +(\S+) +(.*)')
DURATION = re.compile(r'([\d.]+) (us|ms|s)\b')


class TracedServer(Server):
    """A server with --trace. `trace` has its trace lines, each after the time when it came."""

    def __init__(self, script, *arguments):
        self.trace = []
        super().__init__(script, *arguments, '--trace')

    def collect(self, stream):
        with stream:
            for line in stream:
                now, words = time.monotonic(), line.decode('utf-8', 'replace').rstrip()
                if TRACE_LINE.match(words):
                    self.trace.append([now, words])
                else:
                    self.lines.put(words)
        self.lines.put(None)


def play_figure(progress=lambda step, steps, what: None):
    """Play all scenes against all servers, and return what came: a plain dict."""
    lanes = [dict(zip(('name', 'script', 'arguments'), each)) for each in LANES]
    groups = play_groups(lanes)
    for step, (scene, members, head_start) in enumerate(groups):
        progress(step, len(groups), f'{scene}: {members[0]["name"]}')
        play_together(scene, members, head_start)
    progress(len(groups), len(groups), '')
    return {'machine': machine(), 'date': time.strftime('%Y-%m-%d %H:%M'), 'lanes': lanes}


def play_groups(lanes):
    """Return what is played at the same time: [(scene, lanes, seconds for the servers to start)].

    Waiting disturbs nobody. Of the servers that compute, two run at once at most, and the one
    with several processes runs alone, so that each finds a free processor where there are two.
    """
    alone = [lane for lane in lanes if lane['name'].endswith('process')]
    others = [lane for lane in lanes if lane not in alone]
    size = 2 if (os.cpu_count() or 1) > 1 else 1
    pairs = [others[start:start + size] for start in range(0, len(others), size)]
    return ([('read', lanes, 0.8), ('delay', lanes, 0.8)]
            + [('work', pair, 0.2) for pair in [alone, *pairs] if pair])


def play_together(scene, lanes, head_start):
    """Play a scene against the servers of LANES at the same time; on Ctrl-C stop them all."""
    leaving, begin = threading.Event(), time.monotonic() + head_start
    threads = [threading.Thread(target=play_lane, args=(scene, lane, begin, leaving))
               for lane in lanes]
    try:
        with DeferSignals():
            for thread in threads:
                thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.02)                # join() would keep Ctrl-C waiting on Windows
    finally:
        leaving.set()
        for server in list(Server.running):
            server.stop()
        for thread in threads:
            thread.join(10)


def play_lane(scene, lane, begin, leaving):
    """Put into LANE what came of the scene, or why it failed."""
    try:
        lane[scene] = play_scene(lane['script'], lane['arguments'], scene, begin, leaving)
    except (OSError, RuntimeError) as error:
        said = str(error).partition(', but: ')[2]
        lane[scene] = {'failed': said or reason(error)}


def play_scene(script, arguments, scene, begin=0, leaving=None):
    """Play a scene against a server; return its trace lines and the clock of each client."""
    script_of_clients, more = SCENES[scene]
    leaving = leaving or threading.Event()
    with TracedServer(script, *arguments, *more) as server:
        begin = max(begin, time.monotonic() + 0.02)
        clients = [{'name': each[0]} for each in script_of_clients]
        threads = [threading.Thread(target=act, args=(server.address, begin, part, notes, leaving))
                   for part, notes in zip(script_of_clients, clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        leaving.wait(0.1)                   # for the last lines of the trace
    for client in clients:
        if 'error' in client:
            raise RuntimeError(client['error'])
    return {'trace': sorted(server.trace), 'clients': clients}


def act(address, begin, part, notes, leaving):
    """Be one client; NOTES get the time of each of its steps."""
    name, connects, asks, stays = part
    leaving.wait(begin + connects - time.monotonic())
    try:
        with socket.create_connection(address, timeout=10) as sock:
            notes.update(connect=time.monotonic(), port=sock.getsockname()[1])
            leaving.wait(asks - connects)
            notes['ask'] = time.monotonic()
            sock.sendall(b'hello')
            if not sock.recv(100):
                raise OSError('the server closed the connection')
            notes['reply'] = time.monotonic()
            leaving.wait(stays)
            notes['leave'] = time.monotonic()
    except OSError as error:
        notes['error'] = f'client {name}: {reason(error)}'


# ---- figure: from trace lines to phases (read_phases, client_phases) ----

KINDS = {       # kind: character, what it means, colour (Okabe and Ito's), pattern of 8 by 8 units
    'blocked': ('=', 'process is blocked in a call', '#e69f00', 'M0 8 8 0'),
    'asks': ('?', 'process asks again and again (polling)', '#f0e442', 'M4 0V8'),
    'free': ('~', 'process goes on', '#2fb58b', ''),
    'wait': ('.', 'kernel waits for the data', '#c8c8c8', 'M3 4H5'),
    'copy': ('#', 'copy of the data (block of fixed width)', '#56b4e9', 'M0 4H8'),
    'send': ('%', 'copy of the answer (block of fixed width)', '#dd9cc0', 'M0 0 8 8'),
    'unaccepted': ('N', 'connected, but not accepted yet', '#e8743b', 'M0 0 8 8M0 8 8 0'),
    'held': ('H', 'has asked, held up by somebody else', '#e69f00', 'M0 8 8 0'),
    'silent': ('.', 'says nothing: nobody waits', '#c8c8c8', 'M3 4H5'),
    'delay': ('d', 'its own answer: a delay', '#56b4e9', 'M0 4H8'),
    'compute': ('c', 'its own answer: computing', '#2fb58b', ''),
    'share': ('s', 'its own answer: computing, CPU or GIL shared', '#f0e442', 'M4 0V8'),
}
READ_KINDS, CLIENT_KINDS = list(KINDS)[:6], list(KINDS)[6:]


def parse_trace(trace, start):
    """Return the trace as [(seconds since START, number or 0, call, words)], on our clock.

    The two clocks differ by a constant, and a line comes after it was made. So the line that
    came soonest tells the constant, to about a millisecond.
    """
    found = [(came, TRACE_LINE.match(line)) for came, line in trace]
    found = [(came, match) for came, match in found if match]
    offset = min((came - float(match[1]) for came, match in found), default=0)
    return [(float(match[1]) + offset - start, int(match[2].strip('#-') or 0), match[3], match[4])
            for came, match in found]


def durations(words):
    """Return the lengths of time that a trace line names, in seconds."""
    return [float(number) * {'us': 1e-6, 'ms': 1e-3, 's': 1}[unit]
            for number, unit in DURATION.findall(words)]


def connection_number(events, port):
    """Return the number that the server gave the client of PORT, and when it accepted it."""
    for at, number, call, words in events:
        if call == 'accept' and re.search(rf':{port} joined', words):
            return number, at
    return None, None


def read_phases(scene):
    """Return the phases of one read, [(row, kind, start, end, label)], in seconds since connect.

    A kind that ends in `copy` or `send` is drawn as a block of fixed width.
    """
    client = scene['clients'][0]
    events = parse_trace(scene['trace'], client['connect'])
    mine, _ = connection_number(events, client['port'])
    phases, waited = [], None
    for at, number, call, words in events:
        spent = DURATION.search(words)
        took = durations(words)[0] if spent else 0
        if number == 0 and call == 'select' and re.search(rf'read #{mine}\b', words):
            waited = 'blocked', at - took, at, f'blocked in select {spent[0]}'
        elif number == 0 and call == 'enter' and spent:
            waited = 'free', at - took, at, f'goes on, in enter {spent[0]}'
        elif number == mine and call == 'recv':
            waited = None if 'goes on' in words else waited or wait_of(words, at, took, spent)
            if re.search(r"bytes|b''", words):
                phases += read_of(words, at, spent, waited)
        elif number == mine and call.startswith('send'):
            waited = None
            phases += answer_of(words, at, spent)
    return phases


def wait_of(words, at, took, spent):
    """Return what the process did until now, if this recv line tells: (kind, start, end, label)."""
    for begins, kind, label in (
            ('blocked', 'blocked', 'blocked in recv'), ('ready', 'free', 'goes on, ready after'),
            ('in place', 'free', 'goes on, seen after'),
            ('asked', 'asks', f'asked {words.split()[1]} times in')):
        if words.startswith(begins):
            return kind, at - took, at, f'{label} {spent[0]}'
    return None


def read_of(words, at, spent, waited):
    """Return the phases of a read that ends: the wait if there was one, the copy if bytes came."""
    copied_in, process = 'in recv', 'copy'
    if words.startswith(('copied in', 'done at once')):
        copied_in = spent[0]
    elif words.startswith('blocked'):
        process = 'blocked copy'
    elif words.startswith('in place'):
        copied_in, process = 'unseen', 'free copy'
    phases = []
    if waited:
        phases = [('process', *waited), ('kernel', 'wait', *waited[1:3], 'waits for data')]
    if "b'': " not in words:
        phases += [('process', process, at, at, '' if ' ' in process else copied_in),
                   ('kernel', 'copy', at, at, copied_in)]
    return phases


def answer_of(words, at, spent):
    """Return the phases of an answer that was sent; none if it has only begun."""
    if 'bytes' not in words:
        return []
    return [('process', 'free send' if 'in place' in words else 'send', at, at, spent[0]),
            ('kernel', 'send', at, at, spent[0])]


def client_phases(scene):
    """Return what each client waits for, [(client, kind, start, end, label)], in seconds."""
    begin = min(client['connect'] for client in scene['clients'])
    events = parse_trace(scene['trace'], begin)
    phases = []
    for client in scene['clients']:
        number, accepted = connection_number(events, client['port'])
        start, leave = client['connect'] - begin, client['leave'] - begin
        ask, reply = client['ask'] - begin, client['reply'] - begin
        steps = [('unaccepted', leave if number is None else accepted), ('silent', ask),
                 *answer_steps(events, number), ('held', reply), ('silent', leave)]
        for kind, end in steps:
            end = min(end, leave)
            if end - start > 0.004:         # what is shorter, the clock does not show
                phases.append((client['name'], kind, start, end, KINDS[kind][0]))
                start = end
    return phases


def answer_steps(events, number):
    """Return what a client waits for while its answer is made: [(kind, until)]."""
    for at, who, call, words in events:
        if who == number and call == 'answer' and DURATION.search(words):
            times = durations(words)
            kind = 'delay'
            if words.startswith('computed'):        # so much CPU time, in so much time
                kind = 'compute' if times[0] > 0.8 * times[-1] else 'share'
            return [('held', at - times[-1]), (kind, at)]
    return []


def place_read(phases, scale, block):
    """Return the phases of a read on paper, [(row, kind, x, width, label)].

    There are SCALE units to the second, and copies take a place of BLOCK units.
    """
    placed, pivot, shift = [], 0, 0
    for row, kind, start, end, label in phases:
        if kind.endswith('copy'):
            pivot, shift = max(pivot, end), 2 * block
            left, width = pivot * scale, block
        elif kind.endswith('send'):
            left, width = pivot * scale + block, block
        else:
            left = max(start, pivot) * scale + shift
            width = max(0, end * scale + shift - left)
        placed.append((row, kind.split()[0], left, width, label))
    return placed


def figure_scales(data):
    """Return how long the reads and the three clients take at most, and when hello came."""
    def longest(phases):
        return max((phase[3] for phase in phases), default=0)
    reads = [read_phases(lane['read']) for lane in data['lanes'] if 'trace' in lane['read']]
    three = [client_phases(lane[scene]) for lane in data['lanes'] for scene in ('delay', 'work')
             if 'trace' in lane[scene]]
    hello = [phase[3] for phases in reads for phase in phases if phase[1].endswith('copy')]
    return (max([0.4, *map(longest, reads)]), max([0.4, *map(longest, three)]),
            statistics.median(hello) if hello else 0.3)


def axis_ticks(total, most):
    """Return at most MOST + 1 round times from 0 to TOTAL seconds, each with its text."""
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 1000) if total / step <= most)
    return [(number * step, f'{number * step:g}') for number in range(int(total / step) + 1)]


def short_label(label, room):
    """Return as much of a label as has room: all, the time at its end, or nothing."""
    shorter = ' '.join(label.split()[-2:]) if DURATION.search(label) else ''
    return next((each for each in (label, shorter) if len(each) <= room), '')


def figure_words(data):
    """Return the sentences of the figure, for both forms."""
    return {
        'title': 'I/O models, drawn from a run',
        'machine': f'{data["machine"]}, {data["date"]}',
        'read': 'A client connects, is silent for 0.3 s, says hello, gets its answer, '
                'and leaves.',
        'read_note': 'Waits are to scale. A copy would be too short to see, so it is a block of '
                     'fixed width with its real time in it. "in recv": the time of recv is known, '
                     'not how much of it was the copy. "unseen": the kernel copied, and no call of '
                     'the process waited for that.',
        'three': 'A connects first, and asks at 0.3 s. B connects at 0.05 s, C at '
                 '0.1 s, and both ask at once.',
        'three_note': f'Each answer takes {SLOW_SECONDS} s: with --delay it waits, with --work it '
                      'computes. Capital letters: somebody else is in the way. (With io_uring the '
                      'kernel may accept earlier; the process has not seen it yet.)',
        'clock': 'Phases come from the trace of each server, the steps of the clients from their '
                 'own clock. The trace line that came soonest tells how the two clocks differ. '
                 'It is exact to about 1 ms, as trace times are. All servers played at the same '
                 'time, but with --work at most two, and those with processes alone.',
    }


def missing_words(lane, scene):
    """Return why a lane was not played."""
    return f'missing: {lane[scene]["failed"]}'


# ---- figure: as text ----

def figure_text(data):
    """Return the figure as text in 80 columns."""
    words, (read_time, three_time, hello) = figure_words(data), figure_scales(data)
    lines = [words['title'], *textwrap.wrap(words['machine'], 79), '', '']
    lines += ['One read', *textwrap.wrap(words['read'], 79), *text_legend(READ_KINDS)]
    lines += textwrap.wrap(words['read_note'], 79)
    scale, block = 46 / read_time, 11
    lines += ['', *text_read_axis(scale, block, hello, read_time)]
    for lane in data['lanes']:
        lines += [lane['name'], *text_read(lane, scale, block)]
    lines += ['', '', 'Three clients', *textwrap.wrap(words['three'], 79)]
    lines += text_legend(CLIENT_KINDS)
    lines += [*textwrap.wrap(words['three_note'], 79), '']
    lines += text_client_axis(37 / three_time, three_time)
    for lane in data['lanes']:
        lines += [lane['name'], *text_clients(lane, 37 / three_time)]
    return '\n'.join([*lines, '', *textwrap.wrap(words['clock'], 79)])


def text_legend(kinds):
    return [f'    {KINDS[kind][0]}  {KINDS[kind][1]}' for kind in kinds]


def text_bars(bars, width):
    """Return one row of bars, [(kind, x, width, label)], as text."""
    row = [' '] * width
    for kind, left, size, label in bars:
        first, last = min(width, round(left)), min(width, round(left + size))
        label = short_label(label, last - first - 2)
        label = f' {label} ' if len(label) > 1 else ''
        row[first:last] = label.center(last - first, '\0').replace('\0', KINDS[kind][0])
    return ''.join(row)


def text_read(lane, scale, block):
    if 'failed' in lane['read']:
        return text_missing(lane, 'read')
    placed = place_read(read_phases(lane['read']), scale, block)
    return [f'  {row:<9}' + text_bars([each[1:] for each in placed if each[0] == row], 68).rstrip()
            for row in ('process', 'kernel')]


def text_missing(lane, scene):
    return ['  ' + line for line in textwrap.wrap(missing_words(lane, scene), 77)]


def text_at(marks, width):
    """Return a line with each text at its place, [(x, text)]; what has no room is left out."""
    line = ''
    for left, words in marks:
        left = min(round(left), width - len(words))
        if left > len(line) or not line:
            line = line.ljust(left) + words
    return line


def text_read_axis(scale, block, hello, total):
    pivot = hello * scale
    ticks = axis_ticks(total, 5)
    marks = [(at * scale, words) for at, words in ticks if at <= hello + 0.02]
    marks += [(at * scale + 2 * block, words + ' s') for at, words in ticks if at > hello + 0.02]
    events = [(0, 'connects'), (pivot - 11, 'says hello'), (pivot + 3, 'copy'),
              (pivot + block + 2, 'answer'), (total * scale + 2 * block - 6, 'leaves')]
    return ['  client   ' + text_at(events, 68), '  seconds  ' + text_at(marks, 68)]


def text_client_axis(scale, total):
    ticks = text_at([(at * scale, words) for at, words in axis_ticks(total, 6)], 37)
    heads = f'--delay {SLOW_SECONDS}', f'--work {SLOW_SECONDS}'
    return [f'   {heads[0]:<37}  {heads[1]}', f's  {ticks:<37}  {ticks}']


def text_clients(lane, scale):
    """Return the rows of the three clients: with --delay on the left, with --work on the right."""
    failed = [scene for scene in ('delay', 'work') if 'failed' in lane[scene]]
    if failed:
        return text_missing(lane, failed[0])
    left, right = (client_phases(lane[scene]) for scene in ('delay', 'work'))
    rows = []
    for name in 'ABC':
        bars = [text_bars([(kind, start * scale, (end - start) * scale, label)
                           for row, kind, start, end, label in phases if row == name], 37)
                for phases in (left, right)]
        rows.append(f'{name}  {bars[0]}  {bars[1]}'.rstrip())
    return rows


# ---- SVG: what the figure and the report draw with ----

SVG_STYLE = '''
.fig{--paper:#fff;--ink:#1a1a1a;--line:#767676;--grid:#d8d8d8;width:100%;height:auto;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-size:13px}
@media (prefers-color-scheme:dark){
.fig{--paper:#16181c;--ink:#eaeaea;--line:#9a9a9a;--grid:#3a3d42}}
.fig .paper{fill:var(--paper)}.fig text{fill:var(--ink)}.fig .title{font-size:20px;font-weight:600}
.fig .head{font-size:16px;font-weight:600}.fig .name{font-size:14px;font-weight:600}
.fig .on{fill:#111;paint-order:stroke;stroke-width:3px;stroke-linejoin:round}
.fig line,.fig polyline{stroke:var(--line);fill:none}.fig .grid{stroke:var(--grid)}
.fig .bar{stroke:var(--line);stroke-width:.6}
'''


def svg_escape(words):
    """Return text for XML: without what XML does not allow."""
    words = re.sub(r'[^\n -~\xa0-\ud7ff]', '?', str(words))
    for character, name in ('&', '&amp;'), ('<', '&lt;'), ('>', '&gt;'), ('"', '&quot;'):
        words = words.replace(character, name)
    return words


def svg_tag(name, content='', **attributes):
    """Return an element; CONTENT is XML already. In names of attributes _ stands for -."""
    words = ''.join(f' {key.rstrip("_").replace("_", "-")}="{svg_escape(svg_number(value))}"'
                    for key, value in attributes.items() if value != '')
    return f'<{name}{words}>{content}</{name}>' if content else f'<{name}{words}/>'


def svg_number(value):
    return f'{value:.1f}'.replace('.0', '') if isinstance(value, float) else value


def svg_text(x, y, words, class_='', **more):
    return svg_tag('text', svg_escape(words), x=x, y=y, class_=class_, **more)


def svg_line(x1, y1, x2, y2, class_=''):
    return svg_tag('line', x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def svg_polyline(points, **more):
    return svg_tag('polyline', points=' '.join(f'{x:.1f},{y:.1f}' for x, y in points), **more)


def svg_bar(x, y, width, height, kind, label='', tip=''):
    """Return a bar of a kind (its colour and pattern), with the label in it if there is room."""
    tip = svg_tag('title', svg_escape(tip)) if tip else ''
    bar = svg_tag('rect', tip, x=x, y=y, width=width, height=height, class_='bar',
                  fill=f'url(#io-{kind})')
    label = short_label(label, (width - 2) / 6.6)
    if label:
        bar += svg_text(x + width / 2, y + height / 2 + 4.5, label, 'on', text_anchor='middle',
                        stroke=KINDS[kind][2])
    return bar


def svg_patterns(kinds):
    """Return the definitions of the fills: a colour with a pattern over it."""
    return svg_tag('defs', ''.join(svg_tag(
        'pattern', svg_tag('rect', width=8, height=8, fill=KINDS[kind][2])
        + (svg_tag('path', d=KINDS[kind][3], stroke='#000', stroke_opacity='.45', fill='none')
           if KINDS[kind][3] else ''),
        id=f'io-{kind}', width=8, height=8, patternUnits='userSpaceOnUse') for kind in kinds))


def svg_page(width, height, title, description, parts):
    """Return a whole SVG document, which also may stand inside HTML."""
    return svg_tag('svg', '\n'.join([
        '', svg_tag('title', svg_escape(title)), svg_tag('desc', svg_escape(description)),
        svg_tag('style', SVG_STYLE), svg_tag('rect', class_='paper', width=width, height=height),
        *parts, '']), xmlns='http://www.w3.org/2000/svg', viewBox=f'0 0 {width} {height:.0f}',
        width='100%', class_='fig', role='img')


# ---- figure: as SVG ----

class SvgColumn:
    """Things under each other: `y` is where the next begins."""
    width, margin = 560, 12

    def __init__(self):
        self.parts, self.y = [], self.margin

    def write(self, words, class_='', step=18):
        """Write text, in as many lines as it takes."""
        letters = (self.width - 2 * self.margin) / {'title': 11.5, 'head': 9.2}.get(class_, 6.7)
        for line in textwrap.wrap(words, int(letters)):
            self.y += step
            self.parts.append(svg_text(self.margin, self.y - 4, line, class_))

    def row_names(self, names, step):
        """Write the names of rows that begin here, and go on below them."""
        for name in names:
            self.parts.append(svg_text(self.margin, self.y + 15, name))
            self.y += step

    def legend(self, kinds):
        """Draw what each fill means, with the letter that the bars have, if they have one."""
        for kind in kinds:
            letter = KINDS[kind][0]
            self.parts.append(svg_bar(self.margin, self.y + 3, 34, 16, kind,
                                      letter if letter.isalpha() else ''))
            self.parts.append(svg_text(self.margin + 42, self.y + 16, KINDS[kind][1]))
            self.y += 22
        self.y += 4


def figure_svg(data):
    """Return the figure as an SVG document."""
    words, (read_time, three_time, hello) = figure_words(data), figure_scales(data)
    page = SvgColumn()
    page.write(words['title'], 'title', 26)
    page.write(words['machine'])
    page.y += 12
    page.write('One read', 'head', 22)
    page.write(words['read'])
    page.legend(READ_KINDS)
    page.write(words['read_note'])
    svg_reads(page, data['lanes'], read_time, hello)
    page.y += 16
    page.write('Three clients', 'head', 22)
    page.write(words['three'] + ' ' + words['three_note'])
    page.legend(CLIENT_KINDS)
    svg_clients(page, data['lanes'], three_time)
    page.y += 8
    page.write(words['clock'])
    description = ' '.join(words[each] for each in ('read', 'read_note', 'three', 'three_note'))
    return svg_page(page.width, page.y + page.margin, words['title'], description,
                    [svg_patterns(KINDS), *page.parts])


def svg_axis(page, heads, ticks):
    """Return a function that draws the lines of the axis down to where the page is then.

    HEADS are [(x, words, anchor)], TICKS are [(x, words)].
    """
    page.y += 42
    top, grid = page.y, len(page.parts)
    page.parts += [svg_text(x, top - 22, words, text_anchor=anchor) for x, words, anchor in heads]
    page.parts += [svg_text(x, top - 5, f'{words} s', text_anchor='middle') for x, words in ticks]

    def draw_lines():
        page.parts[grid:grid] = [svg_line(x, top, x, page.y, 'grid') for x, words in ticks]
    return draw_lines


def svg_reads(page, lanes, total, hello):
    """Draw the reads under one axis."""
    left, right, block = page.margin + 58, page.width - page.margin, 60
    scale = (right - left - 2 * block) / total
    pivot = left + hello * scale
    draw_lines = svg_axis(
        page, [(left, 'connects', 'start'), (pivot - 4, 'says hello', 'end'),
               (pivot + block / 2, 'copy', 'middle'), (pivot + 1.5 * block, 'answer', 'middle'),
               (right, 'leaves', 'end')],
        [(left + at * scale + (2 * block if at > hello + 0.02 else 0), words)
         for at, words in axis_ticks(total, 5)])
    for lane in lanes:
        page.write(lane['name'], 'name', 24)
        if 'failed' in lane['read']:
            page.write(missing_words(lane, 'read'))
            continue
        for row, kind, x, width, label in place_read(read_phases(lane['read']), scale, block):
            y = page.y + (23 if row == 'kernel' else 0)
            tip = f'{KINDS[kind][1]}: {label}'
            page.parts.append(svg_bar(left + x, y, width, 21, kind, label, tip))
        page.row_names(['process', 'kernel'], 23)
    draw_lines()


def svg_clients(page, lanes, total):
    """Draw the three clients of each server: with --delay on the left, with --work on the right."""
    first, gap = page.margin + 18, 18
    size = (page.width - page.margin - first - gap) / 2
    scale, panels = size / total, {'delay': first, 'work': first + size + gap}
    draw_lines = svg_axis(
        page, [(x, f'--{scene} {SLOW_SECONDS}', 'start') for scene, x in panels.items()],
        [(x + at * scale, words) for x in panels.values() for at, words in axis_ticks(total, 6)])
    for lane in lanes:
        page.write(lane['name'], 'name', 24)
        failed = [scene for scene in panels if 'failed' in lane[scene]]
        if failed:
            page.write(missing_words(lane, failed[0]))
            continue
        for scene, x in panels.items():
            for name, kind, start, end, label in client_phases(lane[scene]):
                tip = f'{name} {KINDS[kind][1]}: {start:.3f} s to {end:.3f} s'
                page.parts.append(svg_bar(x + start * scale, page.y + 21 * 'ABC'.index(name),
                                          (end - start) * scale, 19, kind, label.strip('.'), tip))
        page.row_names('ABC', 21)
    draw_lines()


# ---- figure: the command ----

def figure(args):
    """Play the scenes, and draw them: as text, or into the file of --svg."""
    if args.svg:
        check_writable(args.svg)
    for number in (getattr(signal, name, None) for name in DeferSignals.names):
        if number and signal.getsignal(number) != signal.SIG_IGN:       # nohup ignores SIGHUP
            signal.signal(number, interrupt)
    try:
        data = play_figure(show_progress)
    except KeyboardInterrupt:
        sys.exit('\ninterrupted: the servers that were running have been stopped')
    if args.svg:
        write_file(args.svg, figure_svg(data))
        print(f'the figure is in {args.svg!a}')
    else:
        print(figure_text(data))
    return 0 if any('trace' in lane['read'] for lane in data['lanes']) else 1


def check_writable(path):
    """Exit with the reason if PATH cannot be written to, before anything is measured."""
    there = os.path.lexists(path)
    write_file(path, '', 'a')
    if not there:
        os.remove(path)


def write_file(path, words, mode='w'):
    try:
        with open(path, mode, encoding='utf-8', newline='\n') as file:
            file.write(words)
    except (OSError, ValueError) as error:      # ValueError: a null character in the path
        sys.exit(f'cannot write to {path!a}: {reason(error)}')


# ---- compare: measuring ----

VARIANTS = [        # name, script, arguments
    ('blocking serial', 'blocking_server.py', ['--mode', 'serial']),
    ('blocking thread', 'blocking_server.py', ['--mode', 'thread']),
    ('blocking process', 'blocking_server.py', ['--mode', 'process']),
    ('blocking pool of 4', 'blocking_server.py', ['--mode', 'pool', '--pool-size', '4']),
    ('nonblocking', 'nonblocking_server.py', []),
    ('nonblocking pause 20ms', 'nonblocking_server.py', ['--pause', '0.02']),
    ('select', 'select_server.py', []),
    ('selectors select', 'selectors_server.py', ['--selector', 'select', '--suffix=']),
    ('selectors poll', 'selectors_server.py', ['--selector', 'poll', '--suffix=']),
    ('selectors epoll', 'selectors_server.py', ['--selector', 'epoll', '--suffix=']),
    ('selectors kqueue', 'selectors_server.py', ['--selector', 'kqueue', '--suffix=']),
    ('selectors devpoll', 'selectors_server.py', ['--selector', 'devpoll', '--suffix=']),
    ('async asyncio', 'async_server.py', ['--engine', 'asyncio']),
    ('async io_uring', 'async_server.py', ['--engine', 'io_uring']),
    ('socketserver serial', 'socketserver_server.py', ['--mode', 'serial']),
    ('socketserver thread', 'socketserver_server.py', ['--mode', 'thread']),
    ('socketserver process', 'socketserver_server.py', ['--mode', 'process']),
]
WORK_SECONDS = 0.1          # seconds: the slow answer
HOLD_SECONDS = 0.2          # seconds: how long the first client keeps a second one waiting, if the model lets it


def measure(script, arguments, budget, crowd):
    """Return the figures of one server: with the shares of BUDGET seconds for each rate, and CROWD idle clients."""
    figures = {}
    with Server(script, *arguments) as server:
        address = resolve(*server.address)
        figures['second_waits_s'] = second_client_wait(server.address)
        before = memory_bytes(server.pid)
        figures['alone'] = rates(run_load(server, address, 1, budget / 2))
        figures['with_100'] = rates(run_load(server, address, 100, budget))
        measure_crowd(figures, server, crowd, budget, before, held=not {'serial', 'pool'} & set(arguments))
    with Server(script, *arguments, '--work', str(WORK_SECONDS)) as server:
        figures['slow_answer_delays_s'] = slow_delays(server.address)
    return figures


def measure_crowd(figures, server, crowd, budget, before, held):
    """Add what CROWD idle clients cost, and what they cost others, if the model has them HELD at all."""
    address = resolve(*server.address)
    idle, errors = open_idle(address, crowd)
    try:
        measure_beside(figures, server, address, idle, budget, before, held)
    finally:
        for sock in idle:
            sock.close()
    figures['crowd'], figures['not_held'] = crowd, sum(errors.values())


def measure_beside(figures, server, address, idle, budget, before, held):
    """The figures while the crowd IDLE sits there."""
    held = held and answered(idle[-1:], 5)      # if the last is answered, all before it have been accepted
    figures['crowd_bytes'] = difference(memory_bytes(server.pid), before) if held else None
    figures['threads'] = thread_count(server.pid)
    figures['processes'] = len(process_tree(server.pid)) if os.name == 'posix' else None
    used, start = cpu_seconds(server.pid), time.perf_counter()
    time.sleep(budget / 2)
    used = difference(cpu_seconds(server.pid), used)
    figures['idle_cpu'] = None if used is None else used / (time.perf_counter() - start)
    figures['alone_beside_crowd'] = rates(run_load(server, address, 1, budget / 2)) if held else None
    figures['beside_crowd'] = rates(run_load(server, address, 100, budget)) if held else None


def run_load(server, address, connections, seconds, reconnect=False):
    """Load a server; return the latencies, the seconds it took, the CPU seconds of the server, and the errors."""
    work, used = LoadGenerator(address, 64, b'', reconnect), cpu_seconds(server.pid)
    took = work.run(connections, seconds)
    used = difference(cpu_seconds(server.pid), used)
    work.close()        # only now: children that end would take their figures with them
    return {'latencies': work.latencies, 'seconds': took, 'cpu': used, 'errors': dict(work.errors)}


def rates(run):
    """Return the requests per second of a run, and the server's CPU time per request."""
    done = len(run['latencies'])
    return {'per_second': done / run['seconds'], 'latency_s': median(run['latencies']), 'errors': run['errors'],
            'cpu_s': run['cpu'] / done if done and run['cpu'] is not None else None}


def median(values):
    return statistics.median(values) if values else None


def answered(socks, timeout):
    """Whether each of SOCKS gets an answer to a byte."""
    try:
        for sock in socks:
            sock.settimeout(timeout)
            sock.sendall(b'x')
            if not sock.recv(100):
                return False
        return True
    except OSError:
        return False


def second_client_wait(address, before=1):
    """Return how long a client waits for its answer, if clients BEFORE it sit there for HOLD_SECONDS seconds and leave."""
    with contextlib.ExitStack() as others:
        sitting = [others.enter_context(socket.create_connection(address)) for _ in range(before)]
        answered(sitting[:1], 5)
        second = others.enter_context(socket.create_connection(address))
        start = time.perf_counter()
        if not answered([second], HOLD_SECONDS):
            for other in sitting:
                other.close()
            second.settimeout(5)
            second.recv(100)
        return time.perf_counter() - start


def slow_delays(address):
    """Return how much longer than its own a client waits, if another's answer, as slow, was asked for just before."""
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        for sock in first, second:
            sock.settimeout(10 * WORK_SECONDS)
        first.sendall(b'x')
        time.sleep(WORK_SECONDS / 10)
        start = time.perf_counter()
        second.sendall(b'x')
        try:
            first.recv(100)
            first.close()           # a serial server turns to the second only now
            second.recv(100)
        except OSError:
            return None
        return max(0, time.perf_counter() - start - WORK_SECONDS)


def pool_waits():
    """Return how long client 4 and client 5 of a pool of 4 wait."""
    waits = []
    for before in 3, 4:
        with Server('blocking_server.py', '--mode', 'pool', '--pool-size', '4') as server:
            waits.append(second_client_wait(server.address, before))
    return waits


def connection_per_request(budget):
    """Return the rates of a thread server with kept connections, and with a new one for each request."""
    with Server('blocking_server.py') as server:
        address = resolve(*server.address)
        return [rates(run_load(server, address, 10, budget, each)) for each in (False, True)]


def count_held(script, arguments, number):
    """Return how many of NUMBER clients a server really holds: each of these is answered."""
    with Server(script, *arguments) as server:
        idle, errors = open_idle(resolve(*server.address), number)
        held = sum(answered([sock], 2) for sock in idle)
        for sock in idle:
            sock.close()
    return held


# ---- compare: what the notes claim, and what the figures say of it ----

class NotMeasured(Exception):
    """A claim needs a figure that could not be had; the text says why."""


class Figures:
    """What was measured. Asking it for what is not there raises NotMeasured."""

    def __init__(self):
        self.rows, self.extra, self.failed = {}, {}, {}

    def of(self, variant, *keys):
        found = self.rows.get(variant)
        if found is None:
            raise NotMeasured(f'{variant}: {self.failed.get(variant, "not on this platform")}')
        for key in keys:
            found = found.get(key) if found else None
        if found is None:
            raise NotMeasured(f'{variant}: no figure for {" ".join(keys)} on this platform')
        return found

    def extra_figure(self, key):
        if self.extra.get(key) is None:
            raise NotMeasured(self.failed.get(key, 'not measured'))
        return self.extra[key]


def claim_serial(f):
    waits = f.of('blocking serial', 'second_waits_s')
    return waits > 0.9 * HOLD_SECONDS, f'it waited {format_seconds(waits)}, while the first stayed {format_seconds(HOLD_SECONDS)}'


def claim_threads_free(f):
    thread, process = f.of('blocking thread', 'second_waits_s'), f.of('blocking process', 'second_waits_s')
    return max(thread, process) < HOLD_SECONDS / 2, f'the second client waited {format_seconds(thread)} with threads, {format_seconds(process)} with processes'


def claim_threads_cost(f):
    each = {name: f.of(name, 'crowd_bytes') / f.of(name, 'crowd') for name in ('blocking thread', 'blocking process', 'select')}
    figures = ', '.join(f'{name} {format_bytes(each[name])} and {f.of(name, key)} {key}' for name, key in
                        (('blocking thread', 'threads'), ('blocking process', 'processes'), ('select', 'threads')))
    return each['blocking process'] > each['blocking thread'] > 2 * each['select'], 'per idle client: ' + figures


def claim_threads_slow(f):
    thread, loop = f.of('blocking thread', 'with_100', 'cpu_s'), f.of('select', 'with_100', 'cpu_s')
    return thread > loop, f'CPU per request with 100 clients: threads {format_seconds(thread)}, select {format_seconds(loop)}'


def claim_pool(f):
    fits, one_more = f.extra_figure('pool_waits')
    return fits < HOLD_SECONDS / 2 and one_more > 0.9 * HOLD_SECONDS, f'with 4 threads client 4 waited {format_seconds(fits)}, client 5 {format_seconds(one_more)}'


def claim_connection_pool(f):
    kept, new = f.extra_figure('connection_per_request')
    figures = f'{kept["per_second"]:.0f} requests/s with kept connections, {new["per_second"]:.0f} with a new one each'
    return kept['per_second'] > 1.2 * new['per_second'], figures


def claim_polling_burns(f):
    polling = f.of('nonblocking', 'idle_cpu')
    others = max(f.of(name, 'idle_cpu') for name in f.rows if not name.startswith('nonblocking'))
    return polling > 0.5 and others < 0.05, f'with idle clients only: polling {polling:.0%} of a processor, any other at most {others:.0%}'


def claim_polling_late(f):
    late, thread = f.of('nonblocking pause 20ms', 'alone', 'latency_s'), f.of('blocking thread', 'alone', 'latency_s')
    idle = f.of('nonblocking pause 20ms', 'idle_cpu')
    return late > 5 * thread, f'with a pause of 20 ms {format_seconds(late)} (and {idle:.0%} of a processor idle), a blocking thread {format_seconds(thread)}'


def claim_polling_throughput(f):
    pause, thread = f.of('nonblocking pause 20ms', 'with_100', 'per_second'), f.of('blocking thread', 'with_100', 'per_second')
    return pause < thread / 2, f'with 100 clients and a pause of 20 ms {pause:.0f} requests/s, threads {thread:.0f}'


def claim_select_one(f):
    thread, loop = f.of('blocking thread', 'alone', 'latency_s'), f.of('select', 'alone', 'latency_s')
    return loop > 0.9 * thread, f'one client\'s answer takes {format_seconds(thread)} with a thread, {format_seconds(loop)} with select'


def claim_select_many(f):
    waits, count = f.of('select', 'second_waits_s'), f.of('select', 'threads')
    return waits < HOLD_SECONDS / 2 and count == 1 and not f.of('select', 'not_held') , \
        f'{f.of("select", "crowd")} clients on {count} thread; a second client waits {format_seconds(waits)}'


def claim_growth(names, grows):
    def claim(f):
        shares = {name: f.of(name, 'alone_beside_crowd', 'cpu_s') / f.of(name, 'alone', 'cpu_s') for name in names}
        figures = ', '.join(f'{name} x{share:.2f}' for name, share in shares.items())
        crowd = f.of(names[0], 'crowd')
        return all(share > 1.5 if grows else share < 1.5 for share in shares.values()), \
            f'CPU per request of one client with {crowd} idle ones beside it, against alone: {figures}'
    return claim


def claim_limit(f):
    held, others = f.extra_figure('select_holds'), f.extra_figure('poll_holds')
    return held <= 1024 < others, f'of {f.extra_figure("offered")} clients select held {held}, poll {others}'


def claim_slow(f):
    loops = {name: f.of(name, 'slow_answer_delays_s') for name in f.rows if name.startswith(('select', 'nonblocking', 'async'))}
    thread = f.of('blocking thread', 'slow_answer_delays_s')
    figures = f'an answer of {format_seconds(WORK_SECONDS)} holds the next up by {format_seconds(min(loops.values()))} to {format_seconds(max(loops.values()))} in the ' \
              f'loops (async too), by {format_seconds(thread)} with threads'
    return min(loops.values()) > 0.7 * WORK_SECONDS and thread < 0.3 * WORK_SECONDS, figures


def claim_async(f):
    waits, idle = f.of('async io_uring', 'second_waits_s'), f.of('async io_uring', 'idle_cpu')
    slow = f.of('async io_uring', 'slow_answer_delays_s')
    return waits < HOLD_SECONDS / 2 and idle < 0.05, f'io_uring: a second client waits {format_seconds(waits)}, idle {idle:.0%}, ' \
        f'{f.of("async io_uring", "threads")} thread; computing still blocks ({format_seconds(slow)})'


def claim_completion(f):
    ring, loop = f.of('async io_uring', 'with_100', 'cpu_s'), f.of('async asyncio', 'with_100', 'cpu_s')
    bare = f.of('selectors epoll', 'with_100', 'cpu_s')
    return ring < loop, f'CPU per request with 100 clients: io_uring {format_seconds(ring)}, asyncio {format_seconds(loop)} (much of it ' \
                        f'asyncio itself: bare selectors, which are readiness too, {format_seconds(bare)})'


CLAIMS = [      # section of the notes, claim, what decides it
    ('1', 'A second client of a blocking server waits until the first has left', claim_serial),
    ('1', 'With a thread or a process each, clients do not block each other', claim_threads_free),
    ('1', 'But threads, and more so processes, cost memory for each client', claim_threads_cost),
    ('1', 'And with many clients they answer less efficiently than one loop', claim_threads_slow),
    ('1', 'A pool has its limit: client N+1 waits', claim_pool),
    ('1', 'Reusing connections (a connection pool) saves the cost of making them', claim_connection_pool),
    ('2', 'Polling drives the use of CPU up, even when nobody speaks', claim_polling_burns),
    ('2', 'Polling now and then answers late', claim_polling_late),
    ('2', 'Polling now and then lowers the throughput', claim_polling_throughput),
    ('3', 'For one client select is no faster than a blocking thread', claim_select_one),
    ('3', 'But it serves many clients with one thread', claim_select_many),
    ('3', 'The cost of select and poll grows with what they watch',
     claim_growth(['selectors select', 'selectors poll'], True)),
    ('3', 'That of epoll does not', claim_growth(['selectors epoll'], False)),
    ('3', 'select watches at most 1024 connections, poll is not limited so', claim_limit),
    ('3', 'A slow answer is a disaster for a loop that also waits for events', claim_slow),
    ('4', 'Asynchronous I/O leaves the process blocked nowhere', claim_async),
    ('5', 'Completion (io_uring) costs less than readiness (asyncio on epoll)', claim_completion),
]


def judge(figures):
    """Return each claim with its verdict, decided by the figures alone."""
    judged = []
    for section, claim, decide in CLAIMS:
        try:
            holds, bearing = decide(figures)
            verdict = 'holds here' if holds else 'does not hold here'
        except NotMeasured as why:
            verdict, bearing = 'could not be measured', str(why)
        except (ValueError, ZeroDivisionError):
            verdict, bearing = 'could not be measured', 'too few servers or clients could be measured'
        judged.append({'section': section, 'claim': claim, 'verdict': verdict, 'figures': bearing})
    return judged


# ---- compare: the course of it, and what it prints ----

def compare(args):
    """Measure every server of the folder, print the table and judge the claims."""
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, interrupt)
    figures = Figures()
    try:
        measure_all(figures, 0.1 if args.quick else 1, args.quick)
    except KeyboardInterrupt:
        sys.exit('\ninterrupted: the server that was running has been stopped')
    finally:
        for server in list(Server.running):
            server.stop()
    judged = judge(figures)
    if args.json:
        print(json.dumps({'machine': machine(), 'servers': figures.rows, 'more': figures.extra,
                          'failed': figures.failed, 'claims': judged}, indent=1))
    else:
        print(report_table(figures), report_claims(judged), sep='\n\n')
    return 0 if figures.rows else 1


def interrupt(number, frame):
    """The first Ctrl-C or SIGTERM ends the comparison; the next must not disturb the cleaning up."""
    for each in signal.SIGINT, signal.SIGTERM:
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt


def measure_all(figures, budget, quick):
    """Fill FIGURES; what cannot be measured goes to `failed`, with the reason."""
    limit = file_limit() or 10000
    if hasattr(selectors, 'SelectSelector') and selectors.DefaultSelector is selectors.SelectSelector:
        limit = min(limit, 512)             # Windows: our own select holds no more
    crowd = max(0, min(200 if quick else 500, limit - 150))
    variants = [each for each in VARIANTS if available(each)]
    steps = len(variants) + 3
    for step, (variant, script, arguments) in enumerate(variants):
        show_progress(step, steps, variant)
        try_measure(figures, figures.rows, variant, lambda: measure(script, arguments, budget, crowd))
    show_progress(steps - 3, steps, 'a pool and one client more')
    try_measure(figures, figures.extra, 'pool_waits', pool_waits)
    show_progress(steps - 2, steps, 'a new connection per request')
    try_measure(figures, figures.extra, 'connection_per_request', lambda: connection_per_request(budget / 2))
    show_progress(steps - 1, steps, 'how many clients select holds')
    if limit < 1200:
        for key in 'select_holds', 'poll_holds':
            figures.failed[key] = f'it takes 1200 open files, and {limit} are allowed here (ulimit -Hn)'
    else:
        figures.extra['offered'] = 1100
        try_measure(figures, figures.extra, 'select_holds', lambda: count_held('select_server.py', [], 1100))
        try_measure(figures, figures.extra, 'poll_holds', lambda: count_held('selectors_server.py', ['--selector', 'poll'], 1100))
    show_progress(steps, steps, '')


def available(variant):
    """Whether this platform has what a variant is about; where io_uring is refused, its server says why."""
    for word, owner in ('epoll', select), ('kqueue', select), ('devpoll', select), ('poll', select):
        if variant[2][:1] == ['--selector'] and variant[2][1] == word and not hasattr(owner, word):
            return False
    return 'process' not in variant[2] or hasattr(os, 'fork')


def try_measure(figures, where, key, measurement):
    try:
        where[key] = measurement()
    except (OSError, RuntimeError, SystemExit) as error:
        figures.failed[key] = str(error) or type(error).__name__


def show_progress(step, steps, what):
    if sys.stderr and sys.stderr.isatty():
        bar = '#' * (30 * step // steps)
        print(f'\r[{bar:<30}] {what:<40}', end='\r' if step < steps else '\n', file=sys.stderr, flush=True)


def machine():
    if hasattr(os, 'uname'):
        system = '{0.sysname} {0.release} {0.machine}'.format(os.uname())
    else:
        system = 'Windows {0.major}.{0.minor}.{0.build}'.format(sys.getwindowsversion())
    name = sys.implementation.name.replace('cpython', 'CPython')
    return f'{name} {sys.version.split()[0]}, {system}, {os.cpu_count()} processors'


def format_seconds(seconds):
    """Return a length of time in words, in the unit that fits it."""
    if seconds is None:
        return '-'
    if seconds < 0.001:
        return f'{seconds * 1e6:.3g} us'
    return f'{seconds:.2f} s' if seconds >= 1 else f'{seconds * 1e3:.3g} ms'


def format_bytes(count):
    return '-' if count is None else f'{count / 1024:.1f} KiB' if count < 1 << 20 else f'{count / (1 << 20):.1f} MiB'


def report_table(figures):
    """Return the table of all servers, and bars for the two columns where they show more."""
    rows = [['', 'threads', 'memory for', 'CPU', 'one', '100 clients', '', 'with crowd', '', '2nd client', 'slow answer'],
            ['', '+procs', 'the crowd', 'idle', 'client', 'req/s', 'CPU/req', 'req/s', 'CPU/req', 'waits', 'delays']]
    for variant, row in figures.rows.items():
        crowd = row['beside_crowd'] or {}
        rows.append([variant, f'{row["threads"] or "-"}+{row["processes"] or "-"}', format_bytes(row['crowd_bytes']),
                     '-' if row['idle_cpu'] is None else f'{row["idle_cpu"]:.0%}', format_seconds(row['alone']['latency_s']),
                     f'{row["with_100"]["per_second"]:.0f}', format_seconds(row['with_100']['cpu_s']),
                     f'{crowd["per_second"]:.0f}' if crowd else 'none', format_seconds(crowd.get('cpu_s')),
                     format_seconds(row['second_waits_s']), format_seconds(row['slow_answer_delays_s'])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [machine(), '']
    for row in rows:
        lines.append('  '.join(f'{cell:<{width}}' if not column else f'{cell:>{width}}'
                               for column, (cell, width) in enumerate(zip(row, widths))).rstrip())
    crowd = max((row['crowd'] for row in figures.rows.values()), default=0)
    lines += ['', f'The crowd: {crowd} clients that only sit there. Memory: what the server takes more for them.']
    lines += bars('server CPU per request, 100 clients', {name: row['with_100']['cpu_s'] for name, row in figures.rows.items()}, format_seconds)
    lines += bars('memory per idle client', {name: (row['crowd_bytes'] or 0) / row['crowd'] if row['crowd'] else None
                                             for name, row in figures.rows.items()}, format_bytes)
    lines += [f'not measured: {name}: {why}' for name, why in figures.failed.items()]
    return '\n'.join(lines)


def bars(title, values, unit):
    """Return a bar for each of VALUES; one that is ten times the median is cut, and ends in `>`."""
    values = {name: value for name, value in values.items() if value}
    if not values:
        return []
    full = min(max(values.values()), 5 * median(list(values.values())))
    lines = ['', title]
    for name, value in values.items():
        bar = '#' * max(1, round(40 * min(value, full) / full)) + ('>' if value > full else '')
        lines.append(f'  {name:<23} {bar:<41} {unit(value)}')
    return lines


def report_claims(judged):
    """Return the list of claims, each with its verdict and the figures that bear on it."""
    lines = ['What the notes claim, and what was measured here:']
    for each in judged:
        lines += ['', f'[{each["verdict"]}] {each["claim"]} (section {each["section"]})', f'    {each["figures"]}']
    return '\n'.join(lines)


# ---- arguments and start: parse_arguments, main ----

def number_between(kind, low, high):
    """Return an argparse type: a number of that KIND from LOW to HIGH (so neither nan nor inf)."""
    def number(text):
        if low <= kind(text) <= high:
            return kind(text)
        raise argparse.ArgumentTypeError(f'{text} is not between {low} and {high}')
    return number


CHAT_HELP = """Talk to a server: a line or a message goes to it, and its reply is printed.

Standard input is a terminal: each line is sent; exit or Ctrl-D leaves.
It is a file or a pipe: every byte is sent, and all that comes back is written.

"connected" does not mean that the server has accepted the connection. The
kernel of its machine completes the connection and puts it into the backlog,
where it waits for accept. A serial server accepts it when the client before
has left. Until then nothing answers.
"""


class Parser(argparse.ArgumentParser):
    def print_help(self, file=None):
        """Print the help; argparse itself ignores an error of that (--help > /dev/full)."""
        print(self.format_help(), end='', file=file, flush=True)


def parse_arguments(words):
    """Return the arguments; without a command they are those of chat."""
    shape = {'description': __doc__, 'formatter_class': argparse.RawDescriptionHelpFormatter}
    parser = Parser(**shape)
    commands = parser.add_subparsers(dest='command', metavar='chat | load | figure | compare')
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument('--host', default='127.0.0.1',
                       help='where the server listens (default %(default)s)')
    where.add_argument('--port', type=number_between(int, 1, 65535), default=8080,
                       help='its port (default %(default)s)')

    shape['description'] = CHAT_HELP
    add = commands.add_parser('chat', parents=[where], help='talk to a server (the default)',
                              **shape).add_argument
    add('-m', dest='message', action='append', metavar='TEXT',
        help='send TEXT, print the reply, leave; may be repeated')
    add('--quiet', type=number_between(float, 0.001, 3600), default=0.2, metavar='SECONDS',
        help='a reply ends when nothing has come for so long (default %(default)s)')

    add = commands.add_parser('load', parents=[where], help='load a server, and measure'
                              ).add_argument
    add('--connections', type=number_between(int, 1, 100000), default=100, metavar='N',
        help='connections that send requests all the time (default %(default)s)')
    add('--seconds', type=number_between(float, 0.01, 86400), default=5,
        help='how long (default %(default)s)')
    add('--size', type=number_between(int, 1, 1 << 28), default=64, metavar='BYTES',
        help='the size of each message (default %(default)s)')
    add('--idle', type=number_between(int, 0, 100000), default=0, metavar='N',
        help='additional connections that send nothing (default %(default)s)')
    add('--reconnect', action='store_true', help='a new connection for each request')
    add('--json', action='store_true', help='print the figures as JSON')

    add = commands.add_parser('figure', help='draw the models, from a run').add_argument
    add('--svg', metavar='FILE', help='write one picture for a browser, instead of text')

    add = commands.add_parser('compare', help='measure every server and every claim of the notes'
                              ).add_argument
    add('--quick', action='store_true', help='a third of the time, and rougher figures')
    add('--json', action='store_true', help='print the figures as JSON')
    known = *commands.choices, '-h', '--help'
    return parser.parse_args(words if words and words[0] in known else ['chat', *words])


def main():
    if not sys.stderr:          # closed (2>&-): what is meant for it goes nowhere
        sys.stderr = open(os.devnull, 'w')
    for stream in sys.stdout, sys.stderr:
        if stream:              # an old Windows console cannot show every text
            stream.reconfigure(errors='backslashreplace')
    try:
        sys.exit(run_command())
    except KeyboardInterrupt:
        exit_now('', 130)
    except BrokenPipeError:     # nobody reads our output any more
        exit_now(status=1)
    except OSError as error:
        exit_now(f'cannot go on: {reason(error)}', 1)
    except MemoryError:
        exit_now('there is not enough memory for so many bytes: '
                 'take a smaller --size or fewer --connections', 1)


def run_command():
    """Do what the arguments say, and return the status."""
    try:
        args = parse_arguments(sys.argv[1:])
        commands = {'chat': chat, 'load': load, 'figure': figure, 'compare': compare}
        return commands[args.command](args)
    finally:
        if sys.stdout:
            sys.stdout.flush()      # here, so that an error of it is seen


if __name__ == '__main__':
    main()

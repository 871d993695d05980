"""The client of all servers: talk to one, load it, draw or compare them all.

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
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import textwrap
import threading
import time

STEP_SECONDS = 0.5      # on Windows Ctrl-C interrupts no blocking call, so we wait in steps
HAS_PROC = os.path.exists('/proc/self/smaps_rollup')     # Linux 4.14; Solaris has another /proc
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
        end = 'Ctrl-D' if os.name == 'posix' else 'Ctrl-Z Enter'
        print(f'connected to {format_address(sock.getpeername())} '
              f'from {format_address(sock.getsockname())}; exit or {end} leaves', flush=True)
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
    else:
        write_stdout(piece + end.encode())


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
        exit_now('the server has closed the connection before everything had come back', 1)
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


# ---- load: LoadGenerator, load, learn_suffix, open_idle, close_idle, format_load ----

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
        """Load the server for so many SECONDS; return how long it took.

        CONNECTIONS are opened first, beside those of the run before. SHOW is called twice a
        second with the number of answers and the seconds so far.
        """
        start = now = shown = time.perf_counter()
        for number in range(len(self.connections), len(self.connections) + connections):
            self.connections.append(Connection(number))
            self.open_connection(self.connections[-1])
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
                raise socket_error(status)
            self.sel.register(connection.sock, WRITE, (self.on_connected, connection))
        except (OSError, ValueError) as error:
            self.fail(connection, error)

    def on_connected(self, connection, mask):
        status = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self.fail(connection, socket_error(status))
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

    def count_answered(self):
        return sum(each.answered for each in self.connections)


def load(args):
    """Load a server, and report."""
    raise_file_limit(args.connections + args.idle + 20)
    if selectors.DefaultSelector is selectors.SelectSelector and args.connections > 500:
        sys.exit('this client has only select here, which watches 512 sockets: '
                 'take at most 500 --connections')
    with connect(args.host, args.port) as sock:     # a name may have several addresses
        address = sock.family, sock.getpeername()   # this one answers
        local = sock.getsockname()[0] == address[1][0]
        suffix = learn_suffix(sock, f'{args.host}, port {args.port}')
    idle, idle_errors = open_idle(address, args.idle)
    generator = LoadGenerator(address, args.size, suffix, args.reconnect)
    generator.errors.update(idle_errors)
    report = measure_load(generator, args, find_listener_pid(address[1]) if local else None)
    generator.close()
    generator.errors.update(close_idle(idle))
    report['errors'] = dict(generator.errors)
    print(json.dumps(report) if args.json else format_load(report, args), flush=True)
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
    return load_report(generator, seconds, args, used, own)


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


def socket_error(status):
    """Return an OSError for the number that connect_ex or SO_ERROR gave."""
    words = os.strerror(status) if os.name == 'posix' else errno.errorcode.get(status)
    return OSError(status, words or f'error {status}')


def learn_suffix(sock, server):
    """Return what this server adds to each answer: selectors_server.py adds something."""
    reply, end = b'', time.monotonic() + 5
    sock.settimeout(5)
    try:
        sock.sendall(b'suffix?')
        if not sock.recv(1, socket.MSG_PEEK):
            raise OSError('it closed the connection')
    except OSError as error:
        sys.exit(f'no answer from {server}: {reason(error)} '
                 '(is it busy with another client, or waiting for an operator?)')
    for piece in exchange(sock, b'', 0.1):
        reply += piece
        if len(reply) > 65536 or time.monotonic() > end:
            break
    suffix = reply[len(b'suffix?'):]
    if len(reply) > 65536 or not PAYLOAD.translate(None, suffix + suffix.lower()):
        sys.exit(f'{server}, adds {len(suffix)} bytes to an answer of 7: '
                 'that is none of these servers')
    return suffix


def open_idle(address, number):
    """Return NUMBER connections that send nothing, and the errors; the first error ends it."""
    socks, errors = [], collections.Counter()
    for _ in range(number):
        sock = None
        try:
            sock = socket.socket(address[0])
            sock.settimeout(5)
            sock.connect(address[1])
            socks.append(sock)
        except OSError as error:
            errors[f'idle: {reason(error)}'] = number - len(socks)
            if sock:
                sock.close()
            break
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


def load_report(generator, seconds, args, used, own):
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
    report['never_answered'] = args.connections - generator.count_answered()
    known = done and used is not None
    report['server_cpu_us_per_request'] = used / done * 1e6 if known else None
    report['client_cpu_us_per_request'] = own / done * 1e6 if done else None
    report['client_cpu_percent'] = 100 * own / seconds
    return report


def format_load(report, args):
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
    pairs = (line.split() for line in ps('-axo', 'pid=', '-o', 'ppid='))
    return [pid] + [int(child) for child, parent in pairs if int(parent) == pid]


def proc_stat(pid):
    """Return the fields of /proc/PID/stat from the third, `state`, on (see proc(5)).

    They follow the last parenthesis: the second field is a name, and may contain anything.
    """
    with open(f'/proc/{pid}/stat', errors='replace') as file:
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


def find_listener_pid(address):
    """Return the process that listens on ADDRESS of this machine, or None if that is not known."""
    port = f':{address[1]:04X}'
    here = [kernel_address(address) + port, '0' * 8 + port, '0' * 32 + port]
    sockets = [f'socket:[{row[9]}]' for row in kernel_sockets('tcp') + kernel_sockets('tcp6')
               if row[3] == '0A' and row[1] in here]
    for pid in filter(str.isdigit, os.listdir('/proc') if sockets else []):
        with contextlib.suppress(OSError):          # another user's, or it has just ended
            folder = f'/proc/{pid}/fd'
            if any(os.readlink(f'{folder}/{fd}') in sockets for fd in os.listdir(folder)):
                return int(pid)
    return None


def receive_queue(server_address, client_address):
    """Return how many bytes of a connection the kernel holds until the server receives them.

    It is Recv-Q of ss(8) at the server's side. The addresses are what getpeername() and
    getsockname() of the client's socket return. Return None if there is no such connection.
    """
    ends = [f'{kernel_address(each)}:{each[1]:04X}' for each in (server_address, client_address)]
    for row in kernel_sockets('tcp') + kernel_sockets('tcp6'):
        if row[1:3] == ends:
            return int(row[4].rpartition(':')[2], 16)
    return None


def kernel_address(address):
    """Return a host as /proc/net/tcp and tcp6 write it: 127.0.0.1 is 0100007F."""
    family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
    host = socket.inet_pton(family, address[0].partition('%')[0])       # fe80::1%eth0
    return ''.join(f'{word:08X}' for word in struct.unpack(f'={len(host) // 4}I', host))


# ---- starting a server script: defer_signals, Server (test_all.py uses this too) ----

END_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP')
               if hasattr(signal, name)]        # Windows has no SIGHUP


def handle_signals(handler):
    """Let HANDLER have the signals that end us, and return the handlers before it.

    Only the main thread gets signals. An ignored signal stays ignored (nohup): a child inherits
    that, but not a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in END_SIGNALS
            if signal.getsignal(number) not in (signal.SIG_IGN, None)}


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


class Server:
    """A server script that runs: its process, its address, and the lines that it prints.

    It takes a free port if ARGUMENTS name none. BEFORE is a command to run it by. The address is
    read from its `listening` line; RuntimeError, with what it said instead, is raised if none
    comes within TIMEOUT seconds. At the end of a `with` block the server is stopped.
    """
    running = set()
    python = [sys.executable]

    def __init__(self, script, *arguments, timeout=10, before=(), **options):
        pipe_out = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        options = {'stdin': subprocess.DEVNULL, 'start_new_session': True, **pipe_out, **options}
        command = [*before, *self.python, os.path.join(FOLDER, script), *arguments]
        if '--port' not in arguments:
            command += ['--port', '0']
        self.name = ' '.join([script, *arguments])
        self.lines, self.seen, self.readers = queue.Queue(), [], []
        with defer_signals():           # or a Ctrl-C now could leave a server that nobody stops
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
        """End the server and its children, which are of its session, and return its status."""
        with contextlib.suppress(OSError):
            if os.name == 'posix':
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self.process.kill()
        for reader in self.readers:
            reader.join(3)
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
                now, words = time.perf_counter(), line.decode('utf-8', 'replace').rstrip()
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
    head_start = 0.2 + 0.05 * len(lanes)
    return ([('read', lanes, head_start), ('delay', lanes, head_start)]
            + [('work', pair, 0.2) for pair in [alone, *pairs] if pair])


def play_together(scene, lanes, head_start):
    """Play a scene against the servers of LANES at the same time; on Ctrl-C stop them all."""
    leaving, begin = threading.Event(), time.perf_counter() + head_start
    threads = [threading.Thread(target=play_lane, args=(scene, lane, begin, leaving))
               for lane in lanes]
    try:
        with defer_signals():
            for thread in threads:
                thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.02)                # join() would keep Ctrl-C waiting on Windows
            if interrupt.came:
                raise KeyboardInterrupt     # it was lost: Python drops one in some callbacks
    except BaseException:
        leaving.set()
        for server in list(Server.running):
            server.stop()
        for thread in threads:
            thread.join(10)
        raise


def play_lane(scene, lane, begin, leaving):
    """Put into LANE what came of the scene, or why it failed."""
    try:
        lane[scene] = play_scene(lane['script'], lane['arguments'], scene, begin, leaving)
    except (OSError, RuntimeError) as error:
        said = str(error).partition(', but: ')[2]
        lane[scene] = {'failed': f'missing: {said or reason(error)}'}


def play_scene(script, arguments, scene, begin, leaving):
    """Play a scene against a server; return its trace lines and the clock of each client."""
    parts, more = SCENES[scene]
    clients, threads = [], []
    with TracedServer(script, *arguments, *more) as server:
        begin = max(begin, time.perf_counter())
        for name, connects, asks, stays in parts:       # they connect in this order
            leaving.wait(max(0, begin + connects - time.perf_counter()))
            sock = socket.create_connection(server.address, timeout=10)
            clients.append({'name': name, 'port': sock.getsockname()[1],
                            'connect': time.perf_counter()})
            threads.append(threading.Thread(
                target=act, args=(sock, asks - connects, stays, clients[-1], leaving)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        leaving.wait(0.1)                   # for the last lines of the trace
    for client in clients:
        if 'error' in client:
            raise RuntimeError(f'client {client["name"]}: {client["error"]}')
    return {'trace': server.trace, 'clients': clients}


def act(sock, silence, stays, clock, leaving):
    """Be one client that has connected; CLOCK gets the time of each of its steps."""
    with sock:
        try:
            leaving.wait(silence)
            clock['ask'] = time.perf_counter()
            sock.sendall(b'hello')
            if not sock.recv(100):
                raise OSError('the server closed the connection')
            clock['reply'] = time.perf_counter()
            leaving.wait(stays)
            clock['leave'] = time.perf_counter()
        except OSError as error:
            clock['error'] = reason(error)


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
    if waited:              # if not, the data were there before
        phases = [('process', *waited), ('kernel', 'wait', *waited[1:3], 'waits for data')]
    if "b'': " not in words:
        phases += [('process', process, at, at, '' if ' ' in process else copied_in),
                   ('kernel', 'copy', at, at, copied_in)]
    return phases


def answer_of(words, at, spent):
    """Return the phases of an answer that was sent; none if it has only begun."""
    if 'bytes' not in words:
        return []
    return [('process', 'free send' if 'taken' in words else 'send', at, at, spent[0]),
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
                     'fixed width. Its real time stands in it. "in recv": the time of recv is '
                     'known, not how much of it was the copy. "unseen": the kernel copied, and '
                     'no call of the process waited for that.',
        'three': 'A connects first, and asks at 0.3 s. B connects at 0.05 s, C at '
                 '0.1 s, and both ask at once.',
        'three_note': f'Each answer takes {SLOW_SECONDS} s: with --delay it waits, with --work it '
                      'computes. Capital letters: somebody else is in the way. (With io_uring the '
                      'kernel may accept earlier; the process has not seen it yet.)',
        'clock': 'Phases come from the trace of each server, the steps of the clients from their '
                 'own clock. The trace line that came soonest tells how the two clocks differ. '
                 'It is exact to about 1 ms, as trace times are. All servers played at the same '
                 'time; with --work at most two did, and the one with processes alone.',
    }


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
    """Return what each character means, a line each."""
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
    """Return the two rows of a read."""
    if 'failed' in lane['read']:
        return text_missing(lane, 'read')
    placed = place_read(read_phases(lane['read']), scale, block)
    return [f'  {row:<9}' + text_bars([each[1:] for each in placed if each[0] == row], 68).rstrip()
            for row in ('process', 'kernel')]


def text_missing(lane, scene):
    return ['  ' + line for line in textwrap.wrap(lane[scene]['failed'], 77)]


def text_at(marks, width):
    """Return a line with each text at its place, [(x, text)]; what has no room is left out."""
    line = ''
    for left, words in marks:
        left = min(round(left), width - len(words))
        if left > len(line) or not line:
            line = line.ljust(left) + words
    return line


def text_read_axis(scale, block, hello, total):
    """Return what the client does, and the seconds, above the reads."""
    pivot = hello * scale
    ticks = axis_ticks(total, 5)
    marks = [(at * scale, words) for at, words in ticks if at <= hello + 0.02]
    marks += [(at * scale + 2 * block, words + ' s') for at, words in ticks if at > hello + 0.02]
    events = [(0, 'connects'), (pivot - 11, 'says hello'), (pivot + 3, 'copy'),
              (pivot + block + 2, 'answer'), (total * scale + 2 * block - 6, 'leaves')]
    return ['  client   ' + text_at(events, 68), '  seconds  ' + text_at(marks, 68)]


def text_client_axis(scale, total):
    """Return the two scenes, and the seconds, above the three clients."""
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


def escape(words):
    """Return text for XML: without what XML does not allow."""
    words = re.sub(r'[^\n -~\xa0-\ud7ff]', '?', str(words))
    for character, name in ('&', '&amp;'), ('<', '&lt;'), ('>', '&gt;'), ('"', '&quot;'):
        words = words.replace(character, name)
    return words


def tag(name, content='', **attributes):
    """Return an element; CONTENT is XML already. In names of attributes _ stands for -."""
    words = ''.join(f' {key.rstrip("_").replace("_", "-")}="{escape(svg_number(value))}"'
                    for key, value in attributes.items() if value != '')
    return f'<{name}{words}>{content}</{name}>' if content else f'<{name}{words}/>'


def svg_number(value):
    return f'{value:.1f}'.replace('.0', '') if isinstance(value, float) else value


def svg_text(x, y, words, class_='', **more):
    return tag('text', escape(words), x=x, y=y, class_=class_, **more)


def svg_line(x1, y1, x2, y2, class_=''):
    return tag('line', x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def svg_bar(x, y, width, height, kind, label='', tip=''):
    """Return a bar of a kind (its colour and pattern), with the label in it if there is room."""
    tip = tag('title', escape(tip)) if tip else ''
    bar = tag('rect', tip, x=x, y=y, width=width, height=height, class_='bar',
              fill=f'url(#io-{kind})')
    label = short_label(label, (width - 2) / 7)
    if label:
        bar += svg_text(x + width / 2, y + height / 2 + 4.5, label, 'on', text_anchor='middle',
                        stroke=KINDS[kind][2])
    return bar


def svg_patterns(kinds):
    """Return the definitions of the fills: a colour with a pattern over it."""
    return tag('defs', ''.join(tag(
        'pattern', tag('rect', width=8, height=8, fill=KINDS[kind][2])
        + (tag('path', d=KINDS[kind][3], stroke='#000', stroke_opacity='.45', fill='none')
           if KINDS[kind][3] else ''),
        id=f'io-{kind}', width=8, height=8, patternUnits='userSpaceOnUse') for kind in kinds))


def svg_page(width, height, title, description, parts):
    """Return a whole SVG document, which also may stand inside HTML."""
    return tag('svg', '\n'.join([
        '', tag('title', escape(title)), tag('desc', escape(description)),
        tag('style', SVG_STYLE), tag('rect', class_='paper', width=width, height=height),
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
    page.parts += [svg_text(min(x, page.width - 18), top - 5, f'{words} s', text_anchor='middle')
                   for x, words in ticks]

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
            page.write(lane['read']['failed'])
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
        [(x + at * scale, words) for x in panels.values() for at, words in axis_ticks(total, 6)
         if at * scale < size - 10])
    for lane in lanes:
        page.write(lane['name'], 'name', 24)
        failed = [scene for scene in panels if 'failed' in lane[scene]]
        if failed:
            page.write(lane[failed[0]]['failed'])
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
    if args.svg is not None:
        check_writable(args.svg)
    handle_signals(interrupt)
    try:
        data = play_figure(show_progress)
    except KeyboardInterrupt:
        print('\ninterrupted: the servers that ran have been stopped', file=sys.stderr)
        return 130
    if args.svg is not None:
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


# ---- compare: measuring (measure_all, plan, measure_server, measure_curve, ...) ----

VARIANTS = [        # name, script, arguments
    ('blocking serial', 'blocking_server.py', ['--mode', 'serial']),
    ('blocking thread', 'blocking_server.py', ['--mode', 'thread']),
    ('blocking process', 'blocking_server.py', ['--mode', 'process']),
    ('blocking pool of 4', 'blocking_server.py', ['--mode', 'pool', '--pool-size', '4']),
    ('nonblocking', 'nonblocking_server.py', []),
    ('nonblocking 20 ms', 'nonblocking_server.py', ['--pause', '0.02']),
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
CURVE = ['blocking thread', 'selectors select', 'selectors poll', 'selectors epoll',
         'selectors kqueue', 'async asyncio', 'async io_uring']
# the system's own selector: kqueue on macOS and BSD
BEST_SELECTOR = 'selectors ' + ('kqueue' if hasattr(select, 'kqueue') else 'epoll')
FEW = ['blocking thread', 'select']
if hasattr(select, BEST_SELECTOR.split()[1]):
    FEW.append(BEST_SELECTOR)
QUEUE_READERS = ['async io_uring', 'nonblocking', 'select', 'selectors epoll', 'async asyncio']
POOLS = {f'pool of {size}': ['--mode', 'pool', '--pool-size', str(size)]
         for size in (1, 4, 16, 64)}
POOLS.update({'no pool, one at a time': ['--mode', 'serial'],
              'no pool, a thread each': ['--mode', 'thread']})
POOL_DELAY = 0.01           # seconds: how long each answer of these waits
POOL_CLIENTS = 16
DELAY_SECONDS = 0.02        # the answer that waits
WORK_SECONDS = 0.02         # the answer that computes
HOLD_SECONDS = 0.2          # how long a first client keeps a second one waiting, if it can
ANSWER_SECONDS = 5          # a server that takes longer than this for an answer has failed
LINGER_ZERO = struct.pack('hh' if os.name == 'nt' else 'ii', 1, 0)
ROUNDS = [[], ['--delay', str(DELAY_SECONDS)], ['--work', str(WORK_SECONDS)]]
OFFERED = 1100              # clients, more than select can watch


class NotMeasured(Exception):
    """A figure that a claim needs is missing; the text says why."""


class Figures:
    """What was measured, and how it is measured: the sizes, and the servers that run for it.

    groups   {'servers': {name: {figure: [values]}}, ...}: each round adds a value
    failed   {name: why it could not be measured}
    """

    def __init__(self, quick):
        limit = file_limit() or 10000
        if selectors.DefaultSelector is getattr(selectors, 'SelectSelector', None):
            limit = min(limit, 512)         # Windows: our own select holds no more
        self.quick, self.limit = quick, limit
        self.batch = (0.012 if quick else 0.075) * (1 if HAS_PROC else 5)     # ps is not exact
        self.crowd = max(10, min(60 if quick else 500, limit - 250))
        self.steps = [0, 10, 100, 500, 1000] + ([] if quick else [10000])
        self.steps = [each for each in self.steps if each < limit - 250]
        self.groups = {group: {} for group in
                       ('servers', 'curve', 'pools', 'few', 'new_connections', 'kernel', 'limits')}
        self.failed, self.kept = {}, {}

    def add(self, name, key, value, group='servers'):
        if value is not None:
            self.groups[group].setdefault(name, {}).setdefault(key, []).append(value)

    def of(self, name, key, group='servers'):
        """Return the values of a figure."""
        found = self.groups[group].get(name, {}).get(key)
        if not found:
            missing = f'{key} was not measured' if self.groups[group].get(name) else 'not measured'
            raise NotMeasured(f'{name}: {self.failed.get(name, missing)}')
        return found

    def compare(self, key, *names, group='servers'):
        """Return the values of a figure for each of these servers, and words for them.

        A rate or a cost with 100 clients counts only if the server answered all of them.
        """
        for name in names if key.startswith('100_') else ():
            least = min(self.of(name, 'answered_of_100'))
            if least < 100:
                raise NotMeasured(f'{name}: it answered only {least} of 100 clients')
        values = [self.of(name, key, group) for name in names]
        return values, ', '.join(f'{name} {format_values(key, each)}'
                                 for name, each in zip(names, values))

    def server(self, name, script, arguments):
        """Return the running server of that name; start it if it does not run yet."""
        if name not in self.kept:
            self.kept[name] = start_server(script, *arguments)
        return self.kept[name]

    def stop(self, name):
        if name in self.kept:
            self.kept.pop(name).stop()


def start_server(script, *arguments):
    """Start a server, and see that it answers."""
    if not os.path.exists(os.path.join(FOLDER, script)):
        raise RuntimeError(f'{script} is not in the folder of client.py')
    server = Server(script, *arguments)
    try:
        settle(server)
    except BaseException:
        server.stop()
        raise
    return server


def settle(server):
    """Wait until the server has finished earlier work and answers a new client."""
    with socket.create_connection(server.address, ANSWER_SECONDS) as sock:
        if not answered([sock], ANSWER_SECONDS):
            raise RuntimeError(f'it did not answer within {ANSWER_SECONDS} s')


def measure_all(figures, progress):
    """Fill FIGURES, step by step; what cannot be measured goes to `failed`, with the reason."""
    steps = plan(figures)
    total, done, start = sum(step[0] for step in steps), 0, time.monotonic()
    for weight, name, words, function, *arguments in steps:
        spent = time.monotonic() - start
        left = f', {spent / done * (total - done):.0f} s left' if spent > 2 else ''
        progress(done, total, words + left)
        if name not in figures.failed or name in figures.groups['servers']:
            try:
                function(figures, name, *arguments)
            except (OSError, RuntimeError, SystemExit) as error:
                figures.failed[name] = (str(error).partition(', but: ')[2] or reason(error)
                                        or type(error).__name__)
                figures.stop(name)
        if interrupt.came:
            raise KeyboardInterrupt         # it was lost: Python drops one in some callbacks
        done += weight
    progress(total, total, '')


def plan(figures):
    """Return the steps: about how long each takes, its name, words for it, what it calls."""
    steps, variants = [], [each for each in VARIANTS if available(each)]
    names = [name for name, script, arguments in variants]
    for number, more in enumerate(ROUNDS, 1):
        words = f'round {number} of {len(ROUNDS)}: '
        for name, script, arguments in variants:
            steps.append((2, name, words + name, measure_server, script, arguments, more))
        steps.append((4, 'few clients', words + 'few clients', measure_few))
        if os.name == 'posix':      # it takes many ports, for what Windows does not tell: the CPU
            steps.append((2, 'new connections', words + 'new connections',
                          measure_new_connections))
        for name in (each for each in CURVE if each in names):
            steps.append((2, name, f'{words}idle clients, {name}', measure_curve,
                          number == len(ROUNDS)))
        for size in POOLS:
            steps.append((1, size, words + size, measure_pool))
        steps.append((1, 'a pool and one client more', words + 'pools', measure_pool_limit))
    for name, script, arguments in variants if HAS_PROC else ():
        if name in QUEUE_READERS:
            steps.append((2, name, f'what the kernel keeps, {name}', measure_kernel, script,
                          arguments))
    for name in 'select', 'selectors poll':
        if name in names:
            steps.append((4, f'limit of {name}', f'how many {name} holds', measure_limit, name))
    return steps


def available(variant):
    """Whether this platform has it; where io_uring is refused, its server says why."""
    arguments = variant[2]
    if '--selector' in arguments:
        return hasattr(select, arguments[1])
    return 'process' not in arguments or hasattr(os, 'fork')


def measure_server(figures, name, script, arguments, more):
    """One round of a server: a fresh process with the arguments MORE, then the one that is kept."""
    fresh = start_server(script, *arguments, *more)
    try:
        if not {'serial', 'pool'} & set(arguments):     # these do not accept them at all
            measure_crowd(figures, name, fresh)
        if more:
            measure_slow(figures, name, fresh, more[0].strip('-'), float(more[1]))
    finally:
        fresh.stop()
    server = figures.server(name, script, arguments)
    figures.add(name, 'second_waits_s', second_client_wait(server.address))
    measure_rates(figures, name, server, 1)
    measure_rates(figures, name, server, 100)
    if script == 'nonblocking_server.py':
        figures.stop(name)          # it polls: it would take a processor from the others


def measure_crowd(figures, name, server):
    """Add what idle clients cost: memory, threads, processes, CPU."""
    before = memory_bytes(server.pid)
    idle = open_crowd(server, figures.crowd)
    try:
        if len(idle) < figures.crowd:
            raise RuntimeError(f'it held only {len(idle)} of {figures.crowd} idle clients')
        grown = difference(memory_bytes(server.pid), before)
        figures.add(name, 'idle_client_bytes', grown and max(0, grown / figures.crowd))
        figures.add(name, 'threads', thread_count(server.pid))
        if os.name == 'posix':
            figures.add(name, 'processes', len(process_tree(server.pid)))
        used, start = cpu_seconds(server.pid), time.perf_counter()
        time.sleep(2 * figures.batch)
        used = difference(cpu_seconds(server.pid), used)
        figures.add(name, 'idle_cpu', used and used / (time.perf_counter() - start))
    finally:
        reset_all(idle)


def open_crowd(server, number, idle=()):
    """Return NUMBER connections that send nothing (IDLE and new ones), if the server holds them.

    It holds them if the last is answered: the others were accepted before it.
    """
    idle = list(idle) + open_idle(resolve(*server.address), number - len(idle))[0]
    if idle and not answered(idle[-1:], ANSWER_SECONDS):
        idle.pop().close()
    return idle


def reset_all(idle):
    """Close connections with a reset, so that none stays in TIME_WAIT."""
    for sock in idle:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        sock.close()


Batches = collections.namedtuple('Batches', 'rate latency cpu answered')


def run_batches(server, clients, batches, seconds, reconnect=False):
    """Load a server with so many CLIENTS, in BATCHES of so many SECONDS each.

    The latency and the server's CPU per request are those of the best batch: the others were
    disturbed by what else this machine does. None means that a figure is not known.
    """
    load = LoadGenerator(resolve(*server.address), 64, reconnect=reconnect)
    took, done, latencies, costs = 0, 0, [], []
    try:
        warm_up(load, clients)
        for _ in range(batches):
            load.latencies.clear()
            used = cpu_seconds(server.pid)
            took += load.run(0, seconds)
            used, count = difference(cpu_seconds(server.pid), used), len(load.latencies)
            done += count
            latencies += [statistics.median(load.latencies)] if count else []
            costs += [used / count] if used and count else []
        if not load.count_answered():
            raise RuntimeError('no answer: ' + (', '.join(load.errors) or 'it does not answer'))
        return Batches(done / took, min(latencies, default=None), min(costs, default=None),
                       load.count_answered())
    finally:
        load.close()        # only now: children that end would take their figures with them


def warm_up(load, clients):
    """Connect, and go on until all CLIENTS are answered, or no more of them are."""
    load.run(clients, 0.01)
    before, count = -1, load.count_answered()
    while before < count < clients:
        load.run(0, 0.1)
        before, count = count, load.count_answered()


def measure_rates(figures, name, server, clients):
    """Add the rate, the latency and the server's CPU per request with so many CLIENTS."""
    found = run_batches(server, clients, 3, figures.batch)
    figures.add(name, f'answered_of_{clients}', found.answered)
    figures.add(name, f'{clients}_per_second', found.rate)
    figures.add(name, f'{clients}_latency_s', found.latency)
    figures.add(name, f'{clients}_cpu_s', found.cpu)


def measure_few(figures, step):
    """Add the latency of very few clients; the servers take turns, and the best turn counts.

    Turns differ by a factor of three: it depends on whether a client and its server happen to
    share a processor.
    """
    names = [name for name in FEW if name in figures.kept]
    for clients in 1, 4:
        latencies = {name: [] for name in names}
        for name in 4 * names:
            found = run_batches(figures.kept[name], clients, 1, figures.batch)
            latencies[name] += [found.latency] if found.latency else []
        for name in names:
            best = min(latencies[name], default=None)
            figures.add(name, f'{clients}_latency_s', best, 'few')


def measure_new_connections(figures, step):
    """Add the CPU of a request on a new connection, with 4 clients."""
    for name in 'blocking thread', 'blocking process', 'blocking pool of 4':
        if name in figures.kept:
            found = run_batches(figures.kept[name], 4, 2, 2 * figures.batch, reconnect=True)
            settle(figures.kept[name])
            figures.add(name, 'cpu_s', found.cpu, 'new_connections')


def measure_curve(figures, name, last):
    """Add the CPU per request of 4 busy clients beside more and more idle ones.

    Four, not one: then the server always has work. With one it falls asleep after each request,
    and to wake a processor costs more CPU than the request (or less than half of that, if client
    and server happen to share a processor).
    """
    if name not in figures.kept or cpu_seconds(figures.kept[name].pid) is None:
        return
    server, idle = figures.kept[name], []
    try:
        for number in figures.steps:
            if number > 1000 and not last:      # so many take long to come and go
                break
            idle = open_crowd(server, number, idle)
            if len(idle) < number:
                break
            for _ in range(3 if number > 1000 else 1):
                cost = run_batches(server, 4, 2, figures.batch).cpu
                figures.add(name, str(number), cost, 'curve')
        if last:
            figures.stop(name)          # now, so that nothing has to wait until all have left
    finally:
        reset_all(idle)
    if not last:
        settle(server)


def measure_pool(figures, size):
    """Add how long 16 clients wait, each with a new connection per request to a pool."""
    server = figures.server(size, 'blocking_server.py',
                            [*POOLS[size], '--delay', str(POOL_DELAY)])
    load = LoadGenerator(resolve(*server.address), 64, reconnect=True)
    load.run(POOL_CLIENTS, 0.2 if figures.quick else 0.4)
    load.close()
    if load.latencies:
        figures.add(size, 'latency_s', statistics.median(load.latencies), 'pools')


def measure_pool_limit(figures, step):
    """Add how long client 4 and client 5 of a pool of 4 wait."""
    if 'blocking pool of 4' in figures.kept:
        server = figures.kept['blocking pool of 4']
        for before in 3, 4:
            waits = second_client_wait(server.address, before)
            figures.add('blocking pool of 4', f'client_{before + 1}_waits_s', waits, 'limits')


def measure_limit(figures, step, name):
    """Add how many clients a server really holds: each of these is answered."""
    if figures.limit < OFFERED + 250:
        raise RuntimeError(f'it takes {OFFERED + 250} open files, and {figures.limit} are allowed')
    figures.stop(name)
    script, arguments = next(each[1:] for each in VARIANTS if each[0] == name)
    with start_server(script, *arguments) as server:
        idle, errors = open_idle(resolve(*server.address), OFFERED)
        end = time.monotonic() + 3 * ANSWER_SECONDS
        held = sum(time.monotonic() < end and answered([sock], 1) for sock in idle)
        reset_all(idle)
        if errors:
            raise RuntimeError(next(iter(errors)))
    figures.add(name, 'held', held, 'limits')


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
    """Return how long a client waits for its answer.

    Clients BEFORE it were there first. They leave after HOLD_SECONDS.
    """
    with contextlib.ExitStack() as others:
        sitting = [others.enter_context(socket.create_connection(address, ANSWER_SECONDS))
                   for _ in range(before)]
        if not answered(sitting[:1], ANSWER_SECONDS):
            raise RuntimeError(f'it did not answer within {ANSWER_SECONDS} s')
        second = others.enter_context(socket.create_connection(address, ANSWER_SECONDS))
        start = time.perf_counter()
        if not answered([second], HOLD_SECONDS):
            for other in sitting:
                other.close()
            second.settimeout(ANSWER_SECONDS)
            if not second.recv(100):
                raise RuntimeError('it closed the connection of a client')
        return time.perf_counter() - start


def measure_slow(figures, name, server, kind, seconds):
    """Add how long a slow answer (it waits or computes for SECONDS) delays another client.

    Two clients ask together, and each answer takes so long: the figure is how much later than
    that both have theirs. It is the best of two tries: a busy machine only adds to it.
    """
    for _ in range(1 if figures.quick else 3):
        if kind == 'work' and name in PROCESSES:
            beside_ours = min(answer_time(server.address, 1, seconds) for _ in range(2))
            figures.add(name, 'work_beside_ours_delays_s', max(0, beside_ours - seconds))
        delay = min(answer_time(server.address, 2) for _ in range(2)) - seconds
        figures.add(name, f'{kind}_delays_s', max(0, delay))


def answer_time(address, clients, compute=0):
    """Return how long it takes until so many CLIENTS have an answer; meanwhile COMPUTE seconds."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(address, ANSWER_SECONDS))
                 for _ in range(clients)]
        start, used = time.perf_counter(), time.thread_time()
        for sock in socks:
            sock.sendall(b'x')
        while time.thread_time() - used < compute:
            pass
        for sock in socks:
            if not sock.recv(100):
                raise RuntimeError('it closed the connection of a client')
            sock.close()        # a serial server turns to the next only now
        return time.perf_counter() - start


def measure_kernel(figures, name, script, arguments):
    """Add how many bytes of a client the kernel keeps while the server computes for another.

    0 means that they are in the server's memory already: the kernel has copied them meanwhile.
    """
    server = start_server(script, *arguments, '--work', '0.2')
    with server, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(
            socket.create_connection(server.address, ANSWER_SECONDS)) for _ in range(2))
        if not answered([second], ANSWER_SECONDS):      # then both are accepted
            raise RuntimeError('it did not answer')
        time.sleep(0.1)                 # the server asks for the next bytes of both
        first.sendall(b'x')
        time.sleep(0.06)
        second.sendall(b'second')
        before = count = None
        while not select.select([first], [], [], 0.02)[0]:      # it still computes
            before, count = count, receive_queue(second.getpeername(), second.getsockname())
    # the last count may be of the moment after the answer
    figures.add(name, 'receive_queue_bytes', before, 'kernel')


def has_gil():
    """Whether only one thread of this Python computes at a time."""
    return getattr(sys, '_is_gil_enabled', lambda: True)()


def machine():
    """Return what the figures depend on, in a line."""
    if hasattr(os, 'uname'):
        system = '{0.sysname} {0.release} {0.machine}'.format(os.uname())
    else:
        system = 'Windows {0.major}.{0.minor}.{0.build}'.format(sys.getwindowsversion())
    name = sys.implementation.name.replace('cpython', 'CPython')
    gil = 'with a GIL' if has_gil() else 'without a GIL'
    return f'{name} {sys.version.split()[0]} {gil}, {system}, {os.cpu_count()} processors'


# ---- compare: the claims, and what decides each (CLAIMS, judge, below, all_of) ----

HOLDS, FAILS, UNSURE = 'holds here', 'does not hold here', 'cannot tell here'
MARGIN = 1.1


def below(low, high, factor=1):
    """Return the verdict on: LOW times FACTOR is below HIGH.

    Both are lists of values (or a number). Their ranges are compared, and must be a tenth apart.
    """
    low, high = ([each] if isinstance(each, (int, float)) else each for each in (low, high))
    if max(low) * factor * MARGIN <= min(high):
        return HOLDS
    return FAILS if min(low) * factor >= max(high) * MARGIN else UNSURE


def all_of(*verdicts):
    """Return the verdict on several things that must all be true."""
    return next((each for each in (FAILS, UNSURE) if each in verdicts), HOLDS)


# Each claim function returns its verdict, and the figures that it rests on, in words. `f.compare`
# returns the values of a figure for some servers, and words for them.

def claim_serial(f):
    (waits,), words = f.compare('second_waits_s', 'blocking serial')
    return below(0.8 * HOLD_SECONDS, waits), f'it waited, while the first stayed 0.2 s: {words}'


def claim_free(f):
    waits, words = f.compare('second_waits_s', 'blocking thread', 'blocking process')
    return all_of(*(below(each, HOLD_SECONDS / 2) for each in waits)), (
        f'a second client waited, while the first stayed 0.2 s: {words}')


def claim_memory(f):
    (thread, process, loop), words = f.compare(
        'idle_client_bytes', 'blocking thread', 'blocking process', 'select')
    least = [max(1024, each) for each in loop]          # less cannot be measured well
    return all_of(below(least, thread, 2), below(thread, process)), f'an idle client takes: {words}'


def claim_efficiency(f):
    (loop, *others), words = f.compare('100_cpu_s', 'select', 'blocking thread', 'blocking process')
    return all_of(*(below(loop, each) for each in others)), f'CPU per request: {words}'


def claim_pool_limit(f):
    (fits,), first = f.compare('client_4_waits_s', 'blocking pool of 4', group='limits')
    (more,), second = f.compare('client_5_waits_s', 'blocking pool of 4', group='limits')
    return all_of(below(fits, HOLD_SECONDS / 2), below(0.8 * HOLD_SECONDS, more)), (
        f'the others stayed 0.2 s. Client 4 waited: {first}. Client 5 waited: {second}')


def claim_pool_small(f):
    (one, none, _), words = f.compare('latency_s', 'pool of 1', 'no pool, one at a time',
                                      'no pool, a thread each', group='pools')
    return below(none, one, 0.6), f'median time of an answer to one of 16 clients: {words}'


def claim_pool_larger(f):
    (one, four, sixteen), words = f.compare('latency_s', 'pool of 1', 'pool of 4', 'pool of 16',
                                            group='pools')
    return all_of(below(four, one, 2), below(sixteen, four, 2)), (
        f'median time of an answer to one of 16 clients: {words}')


def claim_pool_enough(f):
    (sixteen, more), words = f.compare('latency_s', 'pool of 16', 'pool of 64', group='pools')
    return below(sixteen, more, 0.6), f'median time of an answer to one of 16 clients: {words}'


def claim_pool_keeps(f):
    (pool, *others), words = f.compare('cpu_s', 'blocking pool of 4', 'blocking thread',
                                       'blocking process', group='new_connections')
    return all_of(*(below(pool, each) for each in others)), (
        f'CPU per request, each on a new connection: {words}')


def claim_reuse(f):
    (kept,), first = f.compare('100_cpu_s', 'blocking thread')
    (new,), second = f.compare('cpu_s', 'blocking thread', group='new_connections')
    return below(kept, new, 1.5), (
        f'CPU per request on connections that stay: {first}; on new ones: {second}')


def claim_polling_burns(f):
    others = [name for name, row in f.groups['servers'].items()
              if 'idle_cpu' in row and not name.startswith('nonblocking')]
    (polling, *rest), words = f.compare('idle_cpu', 'nonblocking', *others)
    most = max(rest, key=max, default=[0])
    return all_of(below(0.1, polling), below(most, 0.1)), (
        f'CPU with idle clients only: {words.partition(", ")[0]}, '
        f'the others at most {max(most):.0%}')


def claim_polling_late(f):
    (late, thread), words = f.compare('1_latency_s', 'nonblocking 20 ms', 'blocking thread')
    return below(thread, late, 5), f'one client got its answer after: {words}'


def claim_polling_throughput(f):
    (pause, thread), words = f.compare('100_per_second', 'nonblocking 20 ms', 'blocking thread')
    return below(pause, thread), f'requests a second of 100 clients: {words}'


def claim_few(clients, factor):
    def claim(f):
        (thread, *loops), words = f.compare(f'{clients}_latency_s', *FEW, group='few')
        return all_of(*(below(thread, loop, factor) for loop in loops)), f'an answer took: {words}'
    return claim


def claim_many_on_one(f):
    (waits,), first = f.compare('second_waits_s', 'select')
    (cpu,), second = f.compare('idle_cpu', 'select')
    threads = max(f.of('select', 'threads'))
    single = HOLDS if threads == 1 else FAILS
    return all_of(single, below(waits, HOLD_SECONDS / 2), below(cpu, 0.1)), (
        f'{f.crowd} idle clients on {threads} thread, CPU: {second}; a second one waited: {first}')


def claim_growth(names, factor):
    """A claim on the curve. FACTOR 1.5: the cost grows to 1.5 times. 0.5: it stays below twice."""
    def claim(f):
        beside = str(max((each for each in f.steps if each <= 1000), default=0))
        if int(beside) < 500:
            raise NotMeasured(f'it takes 750 open files, and {f.limit} are allowed')
        none, first = f.compare('0', *names, group='curve')
        most, second = f.compare(beside, *names, group='curve')
        sides = zip(none, most) if factor > 1 else zip(most, none)
        return all_of(*(below(low, high, factor) for low, high in sides)), (
            f'CPU per request beside no idle clients: {first}; beside {beside}: {second}')
    return claim


def claim_limit(f):
    (held, others), words = f.compare('held', 'select', 'selectors poll', group='limits')
    verdict = HOLDS if max(held) <= 1024 < min(others) else FAILS if min(held) > 1024 else UNSURE
    return verdict, f'of {OFFERED} clients held: {words}'


LOOPS = 'nonblocking', 'select', 'async'            # how the names of these servers begin
THREADS = 'blocking thread', 'socketserver thread'
PROCESSES = 'blocking process', 'socketserver process'


def delays(f, key, starts):
    """Return the least and the greatest of the delays of some servers, and words for them."""
    names = [name for name in f.groups['servers'] if name.startswith(starts)]
    if not names:
        raise NotMeasured('none of these servers was measured')
    values, _ = f.compare(key, *names)
    least, most = min(values, key=min), max(values, key=max)
    return least, most, f'by {format_values(key, least)} to {format_values(key, most)}'


def claim_waiting(f):
    least, _, first = delays(f, 'delay_delays_s', LOOPS)
    _, most, second = delays(f, 'delay_delays_s', THREADS)
    return all_of(below(0.6 * DELAY_SECONDS, least), below(most, 0.4 * DELAY_SECONDS)), (
        f'an answer that waits {format_seconds(DELAY_SECONDS)} delays another client {first} in '
        f'loops, {second} with threads')


def claim_computing(starts):
    """A claim that an answer which computes delays other clients of these servers."""
    def claim(f):
        least, _, words = delays(f, 'work_delays_s', starts)
        return below(0.6 * WORK_SECONDS, least), (
            f'an answer that computes {format_seconds(WORK_SECONDS)} delays another {words}')
    return claim


def claim_parallel(starts):
    """A claim that it does not, if there is a second processor."""
    def claim(f):
        if (os.cpu_count() or 1) < 2:
            raise NotMeasured('this machine has one processor')
        _, most, words = delays(f, 'work_delays_s', starts)
        _, beside_ours, control = delays(f, 'work_beside_ours_delays_s', PROCESSES)
        verdict = below(most, 0.5 * WORK_SECONDS)
        if verdict == FAILS and below(beside_ours, 0.2 * WORK_SECONDS) != HOLDS:
            verdict = UNSURE        # other programs took the second processor
        return verdict, (
            f'an answer that computes {format_seconds(WORK_SECONDS)} delays another {words} (for '
            f'comparison: one alone, while this client computes, {control})')
    return claim


def claim_kernel_copies(f):
    if not HAS_PROC:
        raise NotMeasured('what the kernel still keeps can be read on Linux only')
    (ring, *others), words = f.compare('receive_queue_bytes', *QUEUE_READERS, group='kernel')
    copied, kept = max(ring) == 0, min(map(min, others)) > 0
    # on a busy machine another model may have read already
    return HOLDS if copied and kept else UNSURE if copied else FAILS, (
        f'of 6 bytes that came while the server computed, the kernel still kept: {words}')


def claim_completion(f):
    (ring, loop, _), words = f.compare('100_cpu_s', 'async io_uring', 'async asyncio',
                                       BEST_SELECTOR)
    return below(ring, loop), (
        f'CPU per request of 100 clients: {words} (readiness too: much of the cost of asyncio is '
        'asyncio itself)')


CLAIMS = [      # section of the notes, whose claim it is, the claim, what decides it
    ('1', 'notes', 'A second client of a serial blocking server waits until the first has left',
     claim_serial),
    ('1', 'notes', 'With a thread or a process for each client, no client blocks another',
     claim_free),
    ('1', 'notes', 'Each thread takes memory, and each process takes more', claim_memory),
    ('1', 'notes', 'With 100 clients, threads and processes need more CPU per request than select',
     claim_efficiency),
    ('1', 'notes', 'A pool has a limit: with 4 threads, client 5 waits', claim_pool_limit),
    ('1', 'notes', 'A pool of 1 thread answers 16 clients hardly sooner than no pool',
     claim_pool_small),
    ('1', 'notes', 'A larger pool, of 4 or of 16 threads, answers 16 clients sooner',
     claim_pool_larger),
    ('1', 'ours', 'A pool of 64 threads answers 16 clients hardly sooner than one of 16',
     claim_pool_enough),
    ('1', 'notes', 'A pool that keeps its threads saves the CPU of making one for each request',
     claim_pool_keeps),
    ('1', 'notes', 'Connections that stay (a connection pool) save the CPU of making new ones',
     claim_reuse),
    ('2', 'notes', 'Polling takes much CPU even when no client sends', claim_polling_burns),
    ('2', 'notes', 'Polling with pauses of 20 ms answers late', claim_polling_late),
    ('2', 'notes', 'Polling with pauses of 20 ms answers fewer requests a second than threads',
     claim_polling_throughput),
    ('3', 'notes', 'A thread answers one client in at most 1.3 times the time of select or epoll',
     claim_few(1, 0.7)),
    ('3', 'notes', 'With 4 clients, threads take less than twice the time of select or epoll',
     claim_few(4, 0.5)),
    ('3', 'notes', 'select serves many clients with one thread and little CPU', claim_many_on_one),
    ('3', 'notes', 'select and poll take more CPU per request, the more connections they watch',
     claim_growth(['selectors select', 'selectors poll'], 1.5)),
    ('3', 'notes', f'{BEST_SELECTOR.split()[1]} takes less than twice the CPU per request, however '
     'many connections it watches', claim_growth([BEST_SELECTOR], 0.5)),
    ('3', 'ours', 'io_uring, asyncio and threads take less than twice the CPU beside idle clients',
     claim_growth(['async io_uring', 'async asyncio', 'blocking thread'], 0.5)),
    ('3', 'notes', 'select watches at most 1024 connections, poll has no such limit', claim_limit),
    ('3', 'ours', 'An answer that waits holds up every client of a loop, and nobody with threads',
     claim_waiting),
    ('3', 'notes', 'An answer that computes holds up every client of a loop',
     claim_computing(LOOPS)),
    ('3', 'ours', 'On a Python with a GIL, an answer that computes holds up other threads too',
     claim_computing(THREADS)) if has_gil() else
    ('3', 'ours', 'On a Python without a GIL, an answer that computes holds up no other thread',
     claim_parallel(THREADS)),
    ('3', 'ours', 'An answer that computes holds up nobody with processes',
     claim_parallel(PROCESSES)),
    ('4', 'notes', 'With io_uring the kernel copies while the process computes, with no other '
     'model', claim_kernel_copies),
    ('5', 'ours', 'Completion (io_uring) takes less CPU per request than asyncio on readiness',
     claim_completion),
]


def judge(figures):
    """Return each claim with its verdict, decided by the figures alone."""
    judged = []
    for section, whose, claim, decide in CLAIMS:
        try:
            verdict, bearing = decide(figures)
        except NotMeasured as why:
            verdict, bearing = 'could not be measured', str(why)
        judged.append({'section': section, 'claim': claim, 'whose': whose, 'verdict': verdict,
                       'figures': bearing})
    return judged


# ---- compare: figures in words, the table, bars ----

def format_seconds(seconds):
    """Return a length of time in words, in the unit that fits it."""
    if seconds < 0.001:
        return f'{seconds * 1e6:.3g} us'
    return f'{seconds:.2f} s' if seconds >= 1 else f'{seconds * 1e3:.3g} ms'


def format_bytes(count):
    if count < 1024:
        return '< 1 KiB'
    return f'{count / 1024:.1f} KiB' if count < 1 << 20 else f'{count / (1 << 20):.1f} MiB'


def format_values(key, values):
    """Return the median of a figure and its range, in words. The end of KEY says what it is."""
    form = (format_bytes if key == 'idle_client_bytes' else '{:.0%}'.format if key == 'idle_cpu'
            else '{:.0f}'.format if key.endswith(('_per_second', 'held', '_bytes'))
            else format_seconds)
    middle, low, high = (form(f(values)) for f in (statistics.median, min, max))
    return middle if low == high else f'{middle} ({low} to {high})'


COLUMNS = [     # key, what it is divided by, head, what it means
    ('threads', 1, ('thr', ''), 'thr: threads of the server with the idle clients'),
    ('idle_client_bytes', 1024, ('KiB', 'idle'),
     'KiB idle: memory of the server for each idle client; "<1" is too little to measure'),
    ('idle_cpu', 0.01, ('CPU%', 'idle'),
     'CPU% idle: CPU of the server while all are idle, in % of a processor'),
    ('1_latency_s', 1e-6, ('us', '1 cl.'), 'us 1 cl.: time of an answer, with one client'),
    ('answered_of_100', 1, ('of', '100'),
     'of 100: so many of 100 clients that ask all the time were answered at all'),
    ('100_per_second', 1, ('req/s', '100'), 'req/s 100: requests a second of these 100 clients'),
    ('100_cpu_s', 1e-6, ('us', '100'), 'us 100: CPU of the server per request of these'),
    ('1000', 1e-6, ('us', '+1000'),
     'us +1000: CPU per request of 4 clients beside 1000 idle ones (see the curve)'),
    ('second_waits_s', 1e-3, ('ms', '2nd'),
     f'ms 2nd: so long a second client waits, if the first stays {HOLD_SECONDS * 1e3:.0f} ms'),
    ('delay_delays_s', 1e-3, ('ms', 'wait'),
     f'ms wait: an answer that waits {DELAY_SECONDS * 1e3:.0f} ms delays another client by this'),
    ('work_delays_s', 1e-3, ('ms', 'work'),
     f'ms work: an answer that computes {WORK_SECONDS * 1e3:.0f} ms delays one that computes too'),
]


def compact(value):
    """Return a number in at most four characters."""
    if value >= 1000:
        return f'{value / 1000:.2g}k' if value < 9950 else f'{value / 1000:.0f}k'
    return f'{value:.0f}' if value >= 9.95 or value == int(value) else f'{value:.1f}'


def cell(values, scale, key=''):
    """Return the median and the range of VALUES, as two texts."""
    if not values:
        return '-', ''
    floor = '<1' if key == 'idle_client_bytes' else ''
    middle, low, high = (floor if floor and f(values) < scale else compact(f(values) / scale)
                         for f in (statistics.median, min, max))
    if low[-1] == high[-1] == 'k':
        low = low[:-1] if low != high else low
    return middle, '' if low == high else f'{low}-{high}'


def table_rows(figures):
    """Return the head and, for each server, its name and a cell (median, range) a column."""
    rows = [('', [column[2] for column in COLUMNS])]
    for name, row in figures.groups['servers'].items():
        row = {**row, '1000': figures.groups['curve'].get(name, {}).get('1000')}
        cells = [cell(row.get(key), scale, key) for key, scale, *_ in COLUMNS]
        rows.append((name, cells))
    return rows


def curve_rows(figures):
    rows = [('idle clients:', [(str(number), '') for number in figures.steps])]
    for name, row in figures.groups['curve'].items():
        rows.append((name, [cell(row.get(str(number)), 1e-6) for number in figures.steps]))
    return rows


def format_table(rows, columns):
    """Return rows as text: a line with the medians, and one with the ranges."""
    names = max(len(name) for name, cells in rows)
    widths = [max(len(words) for name, cells in rows for words in cells[column])
              for column in columns]
    lines = []
    for name, cells in rows:
        for label, part in (name, 0), ('', 1):
            words = [cells[column][part].rjust(width) for column, width in zip(columns, widths)]
            lines.append(f'{label:<{names}} {" ".join(words)}'.rstrip())
    return [line for line in lines if line]


def split_table(rows, width):
    """Return rows as text, as one table or as two if one is wider than WIDTH."""
    columns = range(len(rows[0][1]))
    lines, half = format_table(rows, columns), len(columns) // 2
    if max(map(len, lines)) <= width:
        return lines
    return format_table(rows, columns[:half]) + [''] + format_table(rows, columns[half:])


def report_table(figures, width):
    """Return the table of all servers, the curve, and bars, as text."""
    lines = textwrap.wrap(machine(), width) + ['']
    lines += split_table(table_rows(figures), width) + ['']
    for *_, words in COLUMNS:
        lines += textwrap.wrap(words, width, subsequent_indent='    ')
    lines += textwrap.wrap(f'Under each median is the range of {len(ROUNDS)} rounds. There were '
                           f'{figures.crowd} idle clients, and messages of 64 bytes. Latency and '
                           'CPU with 1 and 100 clients are the best of three batches of a round.',
                           width)
    if figures.groups['curve']:
        lines += ['', 'CPU of the server per request of 4 busy clients, in us, beside idle ones:']
        lines += split_table(curve_rows(figures), width)
    lines += bars('CPU of the server per request, 100 clients (servers that answered them all)',
                  bar_values(figures, '100_cpu_s'), format_seconds)
    lines += bars('memory of the server for each idle client',
                  bar_values(figures, 'idle_client_bytes'), format_bytes)
    lines += [''] * bool(figures.failed)
    for name, why in figures.failed.items():
        lines += textwrap.wrap(f'not measured: {name}: {why}', width, subsequent_indent='    ')
    return '\n'.join(lines)


def bar_values(figures, key):
    """Return the values of each server that has them, and that answered all clients."""
    rows = figures.groups['servers'].items()
    return {name: row[key] for name, row in rows if key in row
            and (not key.startswith('100') or min(row['answered_of_100']) == 100)}


def bars(title, values, form):
    """Return a bar for each median; one that is far longer than most is cut, and ends in `>`."""
    medians = {name: statistics.median(each) for name, each in values.items()}
    if not medians:
        return []
    full = min(max(medians.values()), 5 * statistics.median(medians.values())) or 1
    lines = ['', title]
    for name, value in medians.items():
        bar = '#' * max(1, round(30 * min(value, full) / full)) + ('>' if value > full else '')
        lines.append(f'  {name:<21} {bar:<31} {form(value)}')
    return lines


def report_claims(judged, width):
    """Return the list of claims, each with its verdict and the figures that bear on it."""
    lines = ['What the notes claim, what we claim ("ours"), and what was measured here:']
    for each in judged:
        lines += ['', *textwrap.wrap(f'[{each["verdict"]}] {each["claim"]} '
                                     f'({each["whose"]}, section {each["section"]})', width)]
        lines += textwrap.wrap(each['figures'], width, initial_indent='    ',
                               subsequent_indent='    ')
    return '\n'.join(lines)


def json_report(figures, judged, partial):
    """Return everything as a dict for --json; README tells what its keys mean."""
    return {'machine': machine(), 'date': time.strftime('%Y-%m-%d %H:%M'), 'quick': figures.quick,
            'partial': partial, 'rounds': len(ROUNDS), **figures.groups, 'claims': judged,
            'not_measured': figures.failed}


def show_progress(step, steps, what):
    if sys.stderr.isatty():
        bar = '#' * (20 * step // steps)
        print(f'\r[{bar:<20}] {what[:56]:<56}', end='\r' if step < steps else '\n',
              file=sys.stderr, flush=True)


def interrupt(number, frame):
    """End figure or compare at the first signal. Ignore later ones: we are cleaning up."""
    if not interrupt.came:
        interrupt.came = True
        raise KeyboardInterrupt


interrupt.came = False


def compare(args):
    """Measure every server of the folder, print the table and judge the claims."""
    if not any(os.path.exists(os.path.join(FOLDER, script)) for name, script, more in VARIANTS):
        sys.exit('compare starts the *_server.py scripts in the folder of client.py, '
                 'and there are none')
    if args.html is not None:
        check_writable(args.html)
    handle_signals(interrupt)
    figures, drawn, partial = Figures(args.quick), None, False
    try:
        measure_all(figures, show_progress)
        if args.html is not None:
            drawn = play_figure(show_progress)
    except KeyboardInterrupt:
        partial = True
        show_progress(1, 1, 'interrupted')
    finally:
        interrupt.came = True       # from here on a signal must not disturb us
        for server in list(Server.running):
            server.stop()
    found = json_report(figures, judge(figures), partial)
    if args.html is not None:
        write_file(args.html, report_html(figures, found, drawn))
    print_report(args, figures, found)
    return 130 if partial else 0 if figures.groups['servers'] else 1


def print_report(args, figures, found):
    """Print everything as JSON or as text, in as many columns as the terminal has, at most 100."""
    if args.json:
        print(json.dumps(found, indent=1))
        return
    width = max(60, min(100, shutil.get_terminal_size((100, 0)).columns))
    partial = 'PARTIAL: it was interrupted, and what follows is what it had so far.'
    if found['partial']:
        print(f'{partial}\n')
    print(report_table(figures, width), report_claims(found['claims'], width), sep='\n\n')
    if found['partial']:
        print(f'\n{partial}')
    if args.html is not None:
        print(f'\nthe report is in {args.html!a}')


# ---- compare: the report as one page (report_html, draw_bars, draw_curve) ----

PAGE_STYLE = '''
:root{color-scheme:light dark;
--paper:#fff;--ink:#1a1a1a;--soft:#5a5a5a;--line:#d0d0d0;--shade:#f4f4f4;
--yes:#1b6e3c;--no:#a3271b;--unsure:#7a5a00}
@media (prefers-color-scheme:dark){:root{
--paper:#16181c;--ink:#eaeaea;--soft:#a8a8a8;--line:#3a3d42;
--shade:#202329;--yes:#6fd08c;--no:#ff9184;--unsure:#e8c14a}}
body{margin:0 auto;padding:1rem;max-width:64rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.2}h2{margin-top:2.2rem;border-bottom:1px solid var(--line)}
p,li,dd{max-width:44rem}.soft,small{color:var(--soft)}
.scroll{overflow-x:auto;border:1px solid var(--line);width:fit-content;max-width:100%}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;text-align:right;white-space:nowrap;vertical-align:top}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
tbody tr:nth-child(odd) :is(th,td){background:var(--shade)}
td small{display:block;font-size:.75rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;font-size:.85rem}dd{margin:0}
.chart{max-width:40rem;margin:1rem 0}.scroll .fig{min-width:30rem}
.claims{list-style:none;padding:0}.claims li{margin:0 0 1rem;padding-left:.8rem;
border-left:4px solid currentColor;break-inside:avoid}
.claims li>*{color:var(--ink)}.claims b.verdict{color:inherit}.claims .soft{color:var(--soft)}
.yes{color:var(--yes)}.no{color:var(--no)}.unsure{color:var(--unsure)}.unknown{color:var(--soft)}
@media print{body{max-width:none;font-size:11px}.scroll{overflow:visible;border:0}
table,td small,dl{font-size:8px}th,td{padding:1px 3px}.chart{break-inside:avoid}
h2,h2+p{break-after:avoid}}
'''
INTRO = '''
A server talks to many clients. Most of the time a client says nothing, and the server has to wait
for it without keeping the others waiting. There are a few ways to do that: the I/O models.
|
<b>Blocking</b>: the server waits in a call until this client sends. So it takes a thread or a
process for each client, or a pool of them. <b>Non-blocking</b>: it never waits, and asks every
client again and again. <b>Multiplexing</b> (select, poll, epoll): one call waits for all clients at
once, and a loop serves those that have sent something. <b>Asynchronous</b> (io_uring): the server
hands its reads over, and the kernel waits for the data and also copies them.
|
Each of these is a small server in Python here, and all do the same: they send back in capitals
what a client sends. One program has started them all on this machine, measured them by turns, and
compared what it found with what a course on I/O models claims. Figures depend on the machine. A
claim that does not hold here may hold on another.
'''
VERDICT_CLASSES = {HOLDS: 'yes', FAILS: 'no', UNSURE: 'unsure'}
CURVE_LOOKS = {         # a colour (Okabe and Ito's) and the path of a marker
    'blocking thread': ('#e69f00', 'M-4-4H4V4H-4Z'),
    'selectors select': ('#d55e00', 'M0-5 5 4H-5Z'),
    'selectors poll': ('#cc79a7', 'M0 5 5-4H-5Z'),
    BEST_SELECTOR: ('#0098d8', 'M0-5 5 0 0 5-5 0Z'),
    'async asyncio': ('#8a8a8a', 'M-4-4 4 4M-4 4 4-4'),
    'async io_uring': ('#009e73', 'M-4 0A4 4 0 1 1 4 0A4 4 0 1 1-4 0Z'),
}


def report_html(figures, found, drawn):
    """Return the report as a page. DRAWN is what play_figure returned, or None."""
    how = f'{found["machine"]}; {found["date"]}; {found["rounds"]} rounds'
    how += ', quick' if found['quick'] else ''
    parts = [tag('h1', 'I/O models, measured'),
             tag('p', escape(how), class_='soft')]
    if found['partial']:
        parts.append(tag('p', '<b>This is partial:</b> it was interrupted before the end.'))
    parts += [tag('p', each.strip()) for each in INTRO.split('|')]
    parts += [*html_table(figures), *html_charts(figures), *html_claims(found['claims'])]
    parts += [tag('h2', 'The models, drawn from a run'),
              tag('div', figure_svg(drawn), class_='scroll chart') if drawn else tag(
                  'p', 'The pictures are missing: it was interrupted before they were made.')]
    if found['not_measured']:
        parts += [tag('h2', 'Not measured'), tag('ul', ''.join(
            tag('li', escape(f'{name}: {why}'))
            for name, why in found['not_measured'].items()))]
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>I/O models, measured</title><style>{PAGE_STYLE}</style></head>\n<body>\n'
            + '\n'.join(parts) + '\n</body></html>\n')


def html_table(figures):
    """Return the table in a box that scrolls by itself, and what its columns mean."""
    (_, heads), *rows = table_rows(figures)
    head = ''.join(tag('th', '<br>'.join(map(escape, each)) or ' ')
                   for each in [(), *heads])
    body = ''.join(tag('tr', tag('th', escape(name)) + ''.join(map(html_cell, cells)))
                   for name, cells in rows)
    legend = (column[-1].partition(': ') for column in COLUMNS)
    note = (f'In each cell: the median, and under it the range of the rounds. There were '
            f'{figures.crowd} idle clients, and messages of 64 bytes.')
    return [tag('h2', 'Every server'), tag('p', note),
            tag('div', tag('table', f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody>'),
                class_='scroll'),
            tag('dl', ''.join(tag('dt', escape(short)) + tag('dd', escape(long))
                              for short, _, long in legend))]


def html_cell(words):
    middle, spread = map(escape, words)
    return tag('td', middle + (tag('small', spread) if spread else ''))


def html_charts(figures):
    parts = []
    for key, title, log, unit, scale in (
            ('100_cpu_s', 'CPU of the server for a request, 100 busy clients', False, 'us', 1e-6),
            ('idle_client_bytes', 'Memory of the server for an idle client', True, 'KiB', 1024)):
        values = {name: [each / scale for each in row]
                  for name, row in bar_values(figures, key).items()}
        if values:
            parts += [tag('h2', title), tag('div', draw_bars(title, values, unit, log),
                                            class_='chart')]
    if figures.groups['curve']:
        parts += [tag('h2', 'What idle clients cost the busy ones'), tag('p', (
            'Four clients are busy. More and more others are connected, and say nothing. select '
            'and poll look through all of them for each answer. The others do not. Both axes are '
            'logarithmic. A vertical stroke is the range of the rounds.')),
            tag('div', draw_curve(figures), class_='chart')]
    return parts


def html_claims(claims):
    """Return the claims, by sections of the notes, each with its verdict and figures."""
    section, note = '', ('"notes" marks what the course claims, "ours" what this program claims. '
                         'Ranges are compared, not single figures. Where they overlap or are too '
                         'near, the verdict is "cannot tell here".')
    parts = [tag('h2', 'What is claimed, and what was found here'), tag('p', note)]
    names = {'1': 'Blocking', '2': 'Non-blocking', '3': 'Multiplexing', '4': 'Asynchronous',
             '5': 'Comparison'}
    for each in claims:
        if each['section'] != section:
            section = each['section']
            parts.append(tag('h3', f'{section}. {names[section]}'))
        words = [tag('b', each['verdict'], class_='verdict'),
                 tag('span', f' ({each["whose"]}) ', class_='soft'),
                 tag('span', escape(each['claim'])),
                 tag('br'), tag('small', escape(each['figures']), class_='soft')]
        parts.append(tag('ul', tag('li', ''.join(words), class_=VERDICT_CLASSES.get(
            each['verdict'], 'unknown')), class_='claims'))
    return parts


def axis_scale(low, high, log, start, end):
    """Return a function from a value to its place between START and END, and ticks for the axis."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [10.0 ** power * each for power in powers for each in (1, 2, 5)]
        if high / low > 1000:
            ticks = [10.0 ** power for power in powers]
        low, high = math.log10(low), math.log10(high)
    else:
        step = 10.0 ** math.floor(math.log10(high))
        step = next(step * each for each in (0.1, 0.2, 0.5, 1, 2) if high / (step * each) <= 6)
        ticks = [step * number for number in range(int(high / step) + 1)]

    def place(value):
        value = math.log10(value) if log else value
        return start + (value - low) / (high - low) * (end - start)
    first, last = sorted((start, end))
    return place, [tick for tick in ticks if first - 1 <= place(tick) <= last + 1]


def draw_bars(title, values, unit, log):
    """Return a chart of bars, each with its range; with LOG it begins at 1, the least measured."""
    left, width, row, top = 148, 460, 22, 34
    most = max(map(max, values.values())) * 1.05
    place, ticks = axis_scale(1 if log else 0, max(most, 10), log, left, width - 64)
    bottom, parts = top + row * len(values), []
    for tick in ticks:
        parts += [svg_line(place(tick), top - 6, place(tick), bottom, 'grid'),
                  svg_text(place(tick), top - 10, f'{tick:g}', text_anchor='middle')]
    parts.append(svg_text(4, top - 10, unit + (' (log scale)' if log else '')))
    for number, (name, each) in enumerate(values.items()):
        y, end = top + row * number, place(max(1 if log else 0, statistics.median(each)))
        low, high = (place(max(1 if log else 0, f(each))) for f in (min, max))
        middle = statistics.median(each)
        parts += [svg_text(left - 6, y + 14, name, text_anchor='end'),
                  tag('rect', x=left, y=y + 3, width=max(1.0, end - left), height=row - 7,
                      fill='#56b4e9', class_='bar'),
                  tag('path', d=f'M{low:.1f} {y + row / 2 - 3:.1f}v5m0-2.5H{high:.1f}m0-2.5v5',
                      stroke='currentColor', fill='none'),
                  svg_text(max(end, high) + 5, y + 14,
                           '< 1' if log and middle < 1 else compact(middle))]
    return svg_page(width, bottom + 6, title, f'One bar for each server, in {unit}.', parts)


def draw_curve(figures):
    """Return the growth curve: a line for each model, with markers, ranges and its name."""
    curve = {name: [(int(number), [value * 1e6 for value in values])
                    for number, values in row.items()]
             for name, row in figures.groups['curve'].items()}
    every_value = [value for row in curve.values() for _, values in row for value in values]
    last = max(number for row in curve.values() for number, _ in row)
    left, right, top, bottom, width = 44, 330, 30, 300, 460
    up, y_ticks = axis_scale(min(every_value) * 0.9, max(every_value) * 1.1, True, bottom, top)
    along, _ = axis_scale(1, max(last, 10), True, left + 12, right)
    parts = [svg_text(4, 14, 'us of CPU of the server for a request')]
    for tick in y_ticks:
        parts += [svg_line(left, up(tick), right, up(tick), 'grid'),
                  svg_text(left - 5, up(tick) + 4, f'{tick:g}', text_anchor='end')]
    for number in (each for each in figures.steps if each <= last):
        x = along(max(1, number))       # 0 has no place on a log axis: it stands left of 10
        parts += [svg_line(x, top, x, bottom, 'grid'),
                  svg_text(x, bottom + 17 + 14 * (number == 500), number, text_anchor='middle')]
    parts.append(svg_text(left, bottom + 46, 'idle clients beside the 4 busy ones'))
    ends = []
    for name, row in curve.items():
        colour, marker = CURVE_LOOKS[name]
        points = [(along(max(1, number)), up(statistics.median(values))) for number, values in row]
        parts.append(tag('polyline', points=' '.join(f'{x:.1f},{y:.1f}' for x, y in points),
                         style=f'stroke:{colour};stroke-width:2'))
        parts += [tag('path', d=f'M{x:.1f} {up(min(values)):.1f}V{up(max(values)):.1f}',
                      stroke=colour, stroke_width=1.2)
                  for (x, y), (number, values) in zip(points, row)]
        parts += [draw_marker(x, y, colour, marker) for x, y in points]
        ends.append([points[-1][1], name, colour, marker])
    parts += draw_labels(sorted(ends), right + 14, bottom)
    words = 'CPU of the server for a request of a busy client, beside more and more idle ones.'
    return svg_page(width, bottom + 56, 'The growth curve', words, parts)


def draw_marker(x, y, colour, path):
    return tag('path', d=path, transform=f'translate({x:.1f} {y:.1f})', fill=colour,
               stroke=colour, stroke_width=1.5)


def draw_labels(ends, x, bottom):
    """Return the names at the ends of the lines, moved apart so that none covers another."""
    parts, place = [], [end[0] for end in ends]
    for number in range(1, len(place)):
        place[number] = max(place[number], place[number - 1] + 17)
    over = max(0, place[-1] - bottom)
    for y, (_, name, colour, marker) in zip(place, ends):
        parts += [draw_marker(x, y - over, colour, marker), svg_text(x + 9, y - over + 4.5, name)]
    return parts


# ---- arguments and start: parse_arguments, main ----

def number_between(kind, low, high):
    """Return an argparse type: a number of that KIND from LOW to HIGH (so neither nan nor inf)."""
    def number(text):
        if low <= kind(text) <= high:
            return kind(text)
        raise argparse.ArgumentTypeError(f'{text} is not between {low} and {high}')
    return number


CHAT_HELP = """Talk to a server: a line or a message goes to it, and its reply is printed.

Standard input is a terminal: each line is sent; exit or Ctrl-D (on Windows
Ctrl-Z, Enter) leaves. It is a file or a pipe: every byte is sent, and all that
comes back is written.

"connected" does not mean that the server has accepted the connection. The
kernel of its machine completes the connection and puts it into the backlog,
where it waits for accept. A serial server accepts it when the client before
has left. Until then nothing answers.
"""


FIGURE_HELP = """Draw the models from a run: who waits for what, and how long.

It starts each server with --trace, and plays the same scenes against each: one
read (the process, and the kernel), and three clients whose answers are slow
(what each client waits for). The drawing is text in 80 columns. It takes about
12 seconds.
"""


class Parser(argparse.ArgumentParser):
    def print_help(self, file=None):
        """Print the help; argparse itself ignores an error of that (--help > /dev/full)."""
        print(self.format_help(), end='', file=file, flush=True)


def parse_arguments(words):
    """Return the arguments; without a command they are those of chat."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', metavar='chat | load | figure | compare')
    for add_command in add_chat, add_load, add_figure, add_compare:
        add_command(commands)
    known = *commands.choices, '-h', '--help'
    return parser.parse_args(words if words and words[0] in known else ['chat', *words])


def add_chat(commands):
    add = add_address(commands.add_parser(
        'chat', help='talk to a server (the default)', description=CHAT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter))
    add('-m', dest='message', action='append', metavar='TEXT',
        help='send TEXT, print the reply, leave; may be repeated')
    add('--quiet', type=number_between(float, 0.001, 3600), default=0.2, metavar='SECONDS',
        help='a reply ends when nothing has come for so long (default %(default)s)')


def add_load(commands):
    add = add_address(commands.add_parser(
        'load', help='load a server, and measure',
        description='Send requests from many connections, and check each answer byte for byte.'))
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


def add_figure(commands):
    add = commands.add_parser('figure', help='draw the models, from a run', description=FIGURE_HELP,
                              formatter_class=argparse.RawDescriptionHelpFormatter).add_argument
    add('--svg', metavar='FILE', help='write one picture for a browser, instead of text')


def add_compare(commands):
    add = commands.add_parser(
        'compare', help='measure every server and every claim of the notes',
        description='Start every server of this folder, measure it, and judge each claim.'
    ).add_argument
    add('--quick', action='store_true', help='a third of the time, and rougher figures')
    add('--json', action='store_true', help='print the figures as JSON')
    add('--html', metavar='FILE', help='also write the whole report as a page for a browser')


def add_address(command):
    """Add the address of the server to a command; return its add_argument, for more."""
    add = command.add_argument
    add('--host', default='127.0.0.1', help='where the server listens (default %(default)s)')
    add('--port', type=number_between(int, 1, 65535), default=8080,
        help='its port (default %(default)s)')
    return add


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

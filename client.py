"""The client of all servers: talk to one, load it, or compare them all.

    python client.py                    chat: type a line, see the answer (`exit` or Ctrl-D leaves)
    python client.py -m hello -m bye    send these, print the answers, leave
    python client.py < file > copy      every byte in, half-close, every byte back out
    python client.py load               how many requests a second, and how long each takes
    python client.py compare            section 5 of the notes, measured here: every server, every claim

Each has more to say: python client.py chat --help, and so on.
"""
import argparse
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
import threading
import time

STEP_SECONDS = 0.5          # seconds: on Windows Ctrl-C interrupts no blocking call, so we wait in steps
HAS_PROC = os.name == 'posix' and os.path.isdir('/proc/self')       # Linux
FOLDER = os.path.dirname(os.path.abspath(__file__))


def connect(host, port):
    """Return a connection to HOST and PORT, or exit with status 1 and the reason."""
    try:
        return socket.create_connection((host, port))
    except (OSError, UnicodeError) as error:
        sys.exit(f'cannot connect to host {host!a}, port {port}: {getattr(error, "strerror", None) or error}')


# ---- chat ----

def chat(args):
    """Talk to a server: by hand at a terminal, by -m, or as a pipe."""
    sock = connect(args.host, args.port)
    if args.message:
        converse(sock, (os.fsencode(each) for each in args.message), args.quiet)
    elif at_terminal():
        print(f'connected to {args.host}, port {args.port}; exit or Ctrl-D leaves', flush=True)
        converse(sock, typed_lines(sock, args.quiet), args.quiet)
    else:
        pipe(sock)
    close_gracefully(sock)


def at_terminal():
    """Whether standard input is a terminal (on Windows NUL claims to be one too)."""
    return sys.stdin and sys.stdin.isatty() and (os.name == 'posix' or 'Console' in type(sys.stdin.buffer.raw).__name__)


def converse(sock, messages, quiet):
    """Send one message after the other and show what comes back."""
    for message in messages:
        if not message.strip():
            continue
        if message.strip() == b'exit':
            exchange(sock, b'exit', 0)
            return
        reply, open_ = exchange(sock, message, quiet)
        if reply:
            show(reply)
        if not open_:
            sys.exit('the server has closed the connection')


def typed_lines(sock, quiet):
    """Yield the lines that a person types, until Ctrl-D; what a server says or does meanwhile is shown at once."""
    stdin = open(0, 'rb', buffering=0, closefd=False)
    while True:
        print('>>: ', end='', flush=True)
        if os.name == 'posix':      # on Windows select takes sockets only; there the next message notices
            if sock in select.select([stdin, sock], [], [])[0]:
                print()
                late, open_ = exchange(sock, b'', quiet)
                if late:
                    show(late)
                if not open_:
                    sys.exit('the server has closed the connection')
                continue
        line = stdin.readline()
        if not line:
            print()
            return
        yield line.strip()


def exchange(sock, message, quiet, limit=math.inf):
    """Send MESSAGE; return all that comes until the line has been quiet for QUIET seconds, and whether it is still open.

    A line that is never quiet is left after LIMIT seconds; with QUIET 0 nothing is waited for at all.

    It reads while it sends: a server may well answer the beginning before it has read the end, and would be stuck.
    """
    sock.setblocking(False)
    reply, rest, end = [], memoryview(message), time.monotonic() + limit
    while rest or quiet and time.monotonic() < end:
        rl, wl, xl = select.select([sock], [sock] if rest else [], [], quiet if reply and not rest else STEP_SECONDS)
        try:
            if wl:
                rest = rest[sock.send(rest):]
            if rl:
                reply.append(sock.recv(65536))
        except BlockingIOError:
            continue
        except OSError:
            return b''.join(reply), False
        if rl and not reply[-1]:
            return b''.join(reply), False
        if reply and not rest and not rl:
            break
    return b''.join(reply), True


def show(reply):
    """Print a reply: on a terminal with its control characters escaped, elsewhere as it is."""
    if not sys.stdout:
        return
    if sys.stdout.isatty():
        text = reply.decode('utf-8', 'replace')
        print(''.join(each if each.isprintable() else each.encode('unicode_escape').decode() for each in text), flush=True)
    else:
        sys.stdout.buffer.write(reply + b'\n')
        sys.stdout.buffer.flush()


def pipe(sock):
    """Standard input goes to the server, and what comes back to standard output, both at once."""
    sent_all = threading.Event()
    threading.Thread(target=send_stdin, args=(sock, sent_all), daemon=True).start()
    while True:
        if not select.select([sock], [], [], STEP_SECONDS)[0]:
            continue
        try:
            data = sock.recv(65536)
        except OSError:
            sent_all.clear()    # reset: whatever we have sent, not all of it was answered
            break
        if not data:
            break
        write_stdout(data)
    if not sent_all.is_set():
        exit_now('the server has closed the connection before it had everything', 1)
    exit_now()


def write_stdout(data):
    """Write DATA to standard output, past Python's buffers: a thread that they block on would spoil our leaving."""
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
            exit_now(f'cannot write to standard output: {error.strerror}', 1)


def send_stdin(sock, sent_all):
    """Send all of standard input, then half-close: the server answers what it has, and closes."""
    try:
        while True:
            data = read_stdin()
            if not data:
                break
            sock.sendall(data)
        sent_all.set()
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass                    # the main thread sees it too, and says so


def read_stdin():
    """Return the next bytes of standard input, b'' at its end."""
    while sys.stdin:
        try:
            return os.read(0, 65536)
        except BlockingIOError:     # somebody has made it non-blocking
            select.select([0], [], [])
        except OSError as error:
            exit_now(f'cannot read standard input: {error.strerror}', 1)
    return b''


def close_gracefully(sock):
    """Close in order: half-close, then wait up to a second for the server to do the same."""
    try:
        sock.settimeout(1)
        sock.shutdown(socket.SHUT_WR)
        end = time.monotonic() + 1
        while time.monotonic() < end and sock.recv(65536):
            pass
    except OSError:
        pass
    sock.close()


def exit_now(line=None, status=0):
    """Exit at once: a thread may be blocked on standard input, which nothing ends."""
    if line and sys.stderr:     # print(file=None) would write to standard output
        print(line, file=sys.stderr, flush=True)
    os._exit(status)


# ---- load ----

PAYLOAD = random.Random(1).getrandbits(8 << 20).to_bytes(1 << 20, 'little')       # what is sent: pieces of this, never the same twice


class Connection:
    """One connection of the load."""
    __slots__ = 'sock', 'number', 'requests', 'started', 'unsent', 'expected', 'received', 'answered'       # rest: not sent yet


class LoadGenerator:
    """Connections that each send a message, check its answer byte for byte, and send the next (a closed loop).

    `latencies` are in seconds; `errors` counts by name what went wrong.
    """

    def __init__(self, address, size, suffix=b'', reconnect=False):
        self.address, self.size, self.suffix, self.reconnect = address, size, suffix, reconnect
        self.text = PAYLOAD.translate(None, suffix + suffix.lower())   # so that no message has the suffix in it
        self.text *= math.ceil(2 * size / len(self.text))
        self.upper = self.text.upper()
        self.sel = selectors.DefaultSelector()
        self.latencies, self.errors = [], collections.Counter()
        self.opened = []

    def run(self, connections, seconds, progress=lambda done, elapsed: None):
        """Call from so many CONNECTIONS for so many SECONDS; return how long it took."""
        for number in range(connections):
            connection = Connection()
            connection.number, connection.requests, connection.answered = number, 0, False
            self.opened.append(connection)
            self.open_connection(connection)
        start = now = shown = time.perf_counter()
        while now < start + seconds and self.sel.get_map():
            for key, mask in self.sel.select(min(0.2, start + seconds - now)):
                key.data(key.fileobj, mask)
            now = time.perf_counter()
            if now - shown > 0.5:
                shown = now
                progress(len(self.latencies), now - start)
        return now - start

    def open_connection(self, connection):
        """Begin to connect; the connection asks as soon as it is connected."""
        connection.started = time.perf_counter()
        connection.sock = None
        try:
            connection.sock = socket.socket(self.address[0])
            connection.sock.setblocking(False)
            status = connection.sock.connect_ex(self.address[1])
            if status not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                raise OSError(status, os.strerror(status))
            self.sel.register(connection.sock, selectors.EVENT_WRITE, lambda sock, mask: self.on_connected(connection))
        except (OSError, ValueError) as error:
            self.fail(connection, error)

    def on_connected(self, connection):
        status = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self.fail(connection, OSError(status, os.strerror(status)))
        else:
            self.sel.modify(connection.sock, selectors.EVENT_READ, lambda sock, mask: self.on_ready(connection, mask))
            self.send_request(connection)

    def send_request(self, connection):
        """Send the next message."""
        start = (connection.number * 7919 + connection.requests * 104729) % (len(self.text) - self.size + 1)
        connection.requests += 1
        connection.unsent = memoryview(self.text)[start:start + self.size]
        connection.expected = self.upper[start:start + self.size]
        connection.received = bytearray()
        if not self.reconnect:
            connection.started = time.perf_counter()
        self.send(connection)

    def send(self, connection):
        try:
            connection.unsent = connection.unsent[connection.sock.send(connection.unsent):]
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(connection, error)
            return
        if connection.unsent:
            turn = self.sel.get_key(connection.sock).data
            self.sel.modify(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, turn)

    def on_ready(self, connection, mask):
        """Something has come (or can be sent): is the answer complete, and is it right?"""
        if connection.unsent and mask & selectors.EVENT_WRITE:
            self.send(connection)
            if not connection.sock:         # the server has gone meanwhile
                return
            if not connection.unsent:
                self.sel.modify(connection.sock, selectors.EVENT_READ, self.sel.get_key(connection.sock).data)
        if not mask & selectors.EVENT_READ:
            return
        try:
            data = connection.sock.recv(65536)
        except OSError as error:
            self.fail(connection, error)
            return
        connection.received += data
        came = connection.received
        if self.suffix:
            came = came.replace(self.suffix, b'') if came.endswith(self.suffix) else b''
        if not data:
            self.fail(connection, 'closed by the server')
        elif len(came) >= self.size:
            self.latencies.append(time.perf_counter() - connection.started)
            connection.answered = True
            if came != connection.expected:
                self.errors['wrong answer'] += 1
            if self.reconnect:
                self.close_connection(connection)
                self.open_connection(connection)
            else:
                self.send_request(connection)

    def fail(self, connection, error):
        """This connection gives up; the others go on."""
        self.errors[getattr(error, 'strerror', None) or str(error)] += 1
        if connection.sock:
            self.close_connection(connection)

    def close_connection(self, connection):
        if connection.sock in self.sel.get_map():
            self.sel.unregister(connection.sock)
        connection.sock.close()
        connection.sock = None

    def close(self):
        for connection in self.opened:
            if connection.sock:
                self.close_connection(connection)
        self.sel.close()


def load(args):
    """Load a server, and report."""
    raise_file_limit(args.connections + args.idle + 20)
    if selectors.DefaultSelector is selectors.SelectSelector and args.connections > 500:
        sys.exit('this client has only select here, which watches 512 sockets: take at most 500 --connections')
    with connect(args.host, args.port) as sock:     # a name may have several addresses: the one that answers
        address = sock.family, sock.getpeername()
    suffix = learn_suffix(args.host, args.port)
    idle, idle_errors = open_idle(address, args.idle)
    work = LoadGenerator(address, args.size, suffix, args.reconnect)
    work.errors.update(idle_errors)
    pid = find_listener_pid(args.port) if args.host in ('127.0.0.1', '::1', 'localhost') else None
    before, own = cpu_seconds(pid), time.process_time()
    seconds = work.run(args.connections, args.seconds, progress if sys.stderr and sys.stderr.isatty() else lambda *_: None)
    used, own = difference(cpu_seconds(pid), before), time.process_time() - own
    work.close()
    work.errors.update(close_idle(idle))
    if sys.stderr and sys.stderr.isatty():
        print(file=sys.stderr)
    report = summary(work, seconds, args, used, own)
    print(json.dumps(report) if args.json else format_report(report, args), flush=True)
    return 1 if work.errors or not work.latencies else 0


def progress(done, elapsed):
    print(f'\r{elapsed:5.1f} s  {done / elapsed:9.0f} requests/s ', end='', file=sys.stderr, flush=True)


def resolve(host, port):
    """Return the address family and the address of HOST and PORT, or exit with status 1 and the reason."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return found[0], found[4]
    except (OSError, UnicodeError) as error:
        sys.exit(f'cannot find host {host!a}: {getattr(error, "strerror", None) or error}')


def learn_suffix(host, port):
    """Return what this server adds to each answer (selectors_server.py does), asked of it and not assumed."""
    with connect(host, port) as sock:
        sock.settimeout(5)
        try:
            sock.sendall(b'suffix?')
            if not sock.recv(1, socket.MSG_PEEK):
                raise OSError('it closed the connection')
        except OSError as error:
            sys.exit(f'no answer from {host}, port {port}: {error} (does it talk to somebody else, or by an operator?)')
        suffix = exchange(sock, b'', 0.1, 5)[0][len(b'suffix?'):]
    if not PAYLOAD.translate(None, suffix + suffix.lower()):
        sys.exit(f'{host}, port {port}, adds {len(suffix)} bytes to an answer of 7: that is none of these servers')
    return suffix


def open_idle(address, number):
    """Return so many connections that only sit there, and what kept others from it."""
    idle, errors = [], collections.Counter()
    for _ in range(number):
        sock = None
        try:
            sock = socket.socket(address[0])
            sock.settimeout(5)
            sock.connect(address[1])
            idle.append(sock)
        except OSError as error:
            errors['idle: ' + (error.strerror or str(error))] += 1
            if sock:
                sock.close()
    return idle, errors


def close_idle(idle):
    """Close the idle connections; count those that the server had not kept."""
    errors = collections.Counter()
    for sock in idle:
        try:
            sock.setblocking(False)
            errors['idle: closed by the server'] += sock.recv(1) == b''
        except BlockingIOError:
            pass
        except OSError as error:
            errors['idle: ' + error.strerror] += 1
        sock.close()
    return +errors


def summary(work, seconds, args, used, own):
    """Return the figures of a load: seconds in ms or us, as the names say."""
    latencies, done = sorted(work.latencies), len(work.latencies)
    report = {'connections': args.connections, 'idle': args.idle, 'size': args.size, 'reconnect': args.reconnect,
              'suffix': os.fsdecode(work.suffix), 'seconds': seconds, 'requests': done, 'requests_per_second': done / seconds}
    for label, share in ('p50', 0.5), ('p95', 0.95), ('p99', 0.99), ('max', 1):
        report[f'{label}_ms'] = latencies[max(0, math.ceil(share * done) - 1)] * 1e3 if done else None
    report['errors'] = dict(work.errors)
    report['never_answered'] = sum(not connection.answered for connection in work.opened)
    report['server_cpu_us_per_request'] = used / done * 1e6 if done and used is not None else None
    report['client_cpu_us_per_request'] = own / done * 1e6 if done else None
    report['client_cpu_percent'] = 100 * own / seconds
    return report


def format_report(report, args):
    """Return the report of a load for people."""
    lines = [f'{args.host}, port {args.port}: {args.connections} connections, {args.idle} more idle, {args.size} bytes, '
             f'{report["seconds"]:.1f} s' + (', a new connection per request' if args.reconnect else '')]
    lines.append(f'requests   {report["requests"]}: {report["requests_per_second"]:.0f} a second')
    if report['requests']:
        lines.append('latency    ' + ', '.join(f'{each} {report[each + "_ms"]:.3f} ms' for each in ('p50', 'p95', 'p99', 'max')))
        server = report['server_cpu_us_per_request']
        lines.append('CPU        ' + (f'server {server:.1f} us per request, ' if server is not None else '')
                     + f'this client {report["client_cpu_us_per_request"]:.1f} us')
        if report['client_cpu_percent'] > 90:
            lines.append(f'           this client used {report["client_cpu_percent"]:.0f} % of a processor: it is the limit, '
                         'not the server; compare the CPU per request instead of the rate')
    if report['never_answered']:
        lines.append(f'waiting    {report["never_answered"]} connections had no answer in all this time')
    lines.append('errors     ' + (', '.join(f'{count} x {each}' for each, count in report['errors'].items()) or 'none'))
    if report['suffix']:
        lines.append(f'suffix     {report["suffix"]!a} after each answer (learnt)')
    return '\n'.join(lines)


def raise_file_limit(needed):
    """Raise our own limit of open files as far as allowed; exit with status 1 where that is not far enough."""
    limit = file_limit()
    if limit is not None and limit < needed:
        sys.exit(f'{needed} open files are needed, and {limit} allowed: raise the hard limit (ulimit -Hn), '
                 'or take fewer connections')


def file_limit():
    """Raise our own limit of open files as far as allowed, and return it; None where there is none (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, 10240):        # macOS takes no "unlimited" here
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
        except (ValueError, OSError):
            pass
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# ---- what a server costs: read on Linux from /proc, on other POSIX from ps; on Windows not at all ----

def process_tree(pid):
    """Return PID and its children (the servers have no grandchildren)."""
    if HAS_PROC:
        children = []
        for each in filter(str.isdigit, os.listdir('/proc')):
            try:
                if int(proc_stat(each)[1]) == pid:
                    children.append(int(each))
            except OSError:
                pass                    # it has just ended
        return [pid] + children
    pairs = (line.split() for line in ps('-axo', 'pid=,ppid='))
    return [pid] + [int(child) for child, parent in pairs if int(parent) == pid]


def proc_stat(pid):
    """Return the fields of /proc/PID/stat from the third on, `state` (proc(5)): the second may hold anything."""
    with open(f'/proc/{pid}/stat') as file:
        return file.read().rpartition(')')[2].split()


def ps(*arguments):
    return subprocess.run(['ps', *arguments], stdout=subprocess.PIPE, text=True).stdout.splitlines()


def cpu_seconds(pid):
    """Return the seconds of CPU that PID and its children have used; None where that cannot be known."""
    if pid is None or os.name != 'posix':
        return None
    if HAS_PROC:
        try:
            ticks = sum(map(int, proc_stat(pid)[13:15]))     # of children that have ended and were waited for
        except OSError:
            return None                 # it has ended
        return ticks / os.sysconf('SC_CLK_TCK') + sum(map(cpu_clock, process_tree(pid)))
    total = 0
    for line in ps('-o', 'time=', '-p', ','.join(map(str, process_tree(pid)))):
        parts = re.findall(r'[\d.]+', line)         # [[days-]hours:]minutes:seconds
        total += sum(float(part) * unit for part, unit in zip(reversed(parts), (1, 60, 3600, 86400)))
    return total


def cpu_clock(pid):
    """Return the CPU time of one process in seconds, to the nanosecond: its clock, as clock_getcpuclockid(3) makes it."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0                        # it has just ended


def memory_bytes(pid):
    """Return how many bytes PID and its children occupy, each shared page counted once (Pss), else resident; or None."""
    if os.name != 'posix':
        return None
    if HAS_PROC:
        return sum(map(pss, process_tree(pid)))
    return sum(int(line) * 1024 for line in ps('-o', 'rss=', '-p', ','.join(map(str, process_tree(pid)))))


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
        try:
            total += len(os.listdir(f'/proc/{each}/task'))
        except OSError:
            pass                        # it has just ended
    return total


def difference(after, before):
    return None if after is None or before is None else after - before


def find_listener_pid(port):
    """Return the process that listens on PORT of this machine, or None where that cannot be known (Linux only)."""
    found = []
    for table in '/proc/net/tcp', '/proc/net/tcp6':
        try:
            with open(table) as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        found += [f'socket:[{row[9]}]' for row in rows if row[3] == '0A' and int(row[1].rpartition(':')[2], 16) == port]
    for pid in filter(str.isdigit, os.listdir('/proc') if found else []):
        try:
            if any(os.readlink(f'/proc/{pid}/fd/{fd}') in found for fd in os.listdir(f'/proc/{pid}/fd')):
                return int(pid)
        except OSError:
            pass                        # somebody else's, or just ended
    return None


# ---- starting a server script: test_all.py uses this too ----

class DeferSignals:
    """With this, Ctrl-C and SIGTERM wait until what is inside is done (only the main thread gets signals at all)."""

    def __enter__(self):
        self.came, self.handlers = [], {}
        if threading.current_thread() is threading.main_thread():
            for number in signal.SIGINT, signal.SIGTERM:
                self.handlers[number] = signal.signal(number, lambda number, frame: self.came.append(number))

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        for number in self.came:
            signal.raise_signal(number)


class Server:
    """A server script that runs: its process, the address in its `listening` line, and the lines that it prints.

    It takes a free port if ARGUMENTS name none; BEFORE is a command to run it by. With `with`, it is stopped in the
    end, whatever happens. Raises RuntimeError, with what it said, if it does not listen within TIMEOUT seconds.
    """
    running = set()

    def __init__(self, script, *arguments, timeout=10, before=(), **options):
        options = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options}
        command = [*before, sys.executable, os.path.join(FOLDER, script), *arguments]
        if '--port' not in arguments:
            command += ['--port', '0']
        self.name = ' '.join([script, *arguments])
        with DeferSignals():            # or a Ctrl-C now could leave a server that nobody knows of
            self.process = subprocess.Popen(command, **options)
            self.readers = []
            Server.running.add(self)
        self.pid = self.process.pid
        self.lines, self.seen = queue.Queue(), []
        streams = [stream for stream in (self.process.stdout, self.process.stderr) if stream]
        self.open_streams = len(streams)
        self.readers = [threading.Thread(target=self.collect, args=(stream,), daemon=True) for stream in streams]
        for reader in self.readers:
            reader.start()
        try:
            host, port = self.expect(r'listening on (\S+):(\d+)', timeout).groups()
            self.address = host.strip('[]'), int(port)
        except BaseException:
            self.stop()
            raise

    def collect(self, stream):
        with stream:
            for line in stream:
                self.lines.put(line.decode('utf-8', 'replace').rstrip())
        self.lines.put(None)

    def expect(self, pattern, timeout=10):
        """Return the match of the next line that has PATTERN; raises RuntimeError if none comes in TIMEOUT seconds."""
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
            raise RuntimeError(f'{self.name} did not print {pattern!r}, but: {" / ".join(self.seen) or "nothing"}')
        return match

    def stop(self):
        """End it: politely first, which also ends its children."""
        if self.process.poll() is None:
            self.process.terminate()
            for reader in self.readers:     # they end when it does, and tell sooner than process.wait would
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
    shape = {'description': __doc__, 'formatter_class': argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(**shape)
    commands = parser.add_subparsers(dest='command', metavar='chat | load | compare')
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument('--host', default='127.0.0.1', help='where the server listens (default %(default)s)')
    where.add_argument('--port', type=number_between(int, 1, 65535), default=8080, help='default %(default)s')

    add = commands.add_parser('chat', parents=[where], help='talk to a server (the default)').add_argument
    add('-m', dest='message', action='append', metavar='TEXT', help='send TEXT, print the reply, leave; may be repeated')
    add('--quiet', type=number_between(float, 0.001, 3600), default=0.2, metavar='SECONDS',
        help='a reply has ended when nothing has come for so long (default %(default)s)')

    add = commands.add_parser('load', parents=[where], help='load a server, and measure').add_argument
    add('--connections', type=number_between(int, 1, 100000), default=100, metavar='N', help='that ask all the time (default %(default)s)')
    add('--seconds', type=number_between(float, 0.01, 86400), default=5, help='for how long (default %(default)s)')
    add('--size', type=number_between(int, 1, 1 << 28), default=64, metavar='BYTES', help='of each message (default %(default)s)')
    add('--idle', type=number_between(int, 0, 100000), default=0, metavar='N', help='more connections that only sit there')
    add('--reconnect', action='store_true', help='a new connection for each request')
    add('--json', action='store_true', help='print the figures as JSON')

    add = commands.add_parser('compare', help='measure every server and every claim of the notes').add_argument
    add('--quick', action='store_true', help='a third of the time, and rougher figures')
    add('--json', action='store_true', help='print the figures as JSON')
    known = *commands.choices, '-h', '--help'
    return parser.parse_args(words if words and words[0] in known else ['chat', *words])


def main():
    for stream in sys.stdout, sys.stderr:
        if stream:
            stream.reconfigure(errors='backslashreplace')       # an old Windows console cannot show every text
    try:
        args = parse_arguments(sys.argv[1:])
        status = {'chat': chat, 'load': load, 'compare': compare}[args.command](args)
        if sys.stdout:
            sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        exit_now(status=130)
    except BrokenPipeError:     # nobody reads our output any more
        exit_now(status=1)
    except OSError as error:
        exit_now(f'cannot go on: {error.strerror or error}', 1)
    except MemoryError:
        exit_now('there is not enough memory for so many bytes: take a smaller --size or fewer --connections', 1)


if __name__ == '__main__':
    main()

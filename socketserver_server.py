"""The socketserver module (section 6 of the notes): the same steps in a class.

    ThreadingTCPServer(address, Handler)    socket(), bind(), listen()
    serve_forever()                         poll() and accept(), and then
                                            a thread for each client, in which
        Handler(...).handle()               recv() and sendall() block,
                                            and close() when handle returns

    process   |-------------- blocked in recv ---------------|  answer
    kernel    |---- wait for the data ----|---- copying -----|

Here an operator answers by hand, as in the notes. What a client has sent is
shown, and the operator types the answer, for one client at a time. That is
--reply operator, the default at a terminal. `exit` from the client ends its
conversation. --reply upper answers like every other server.

Run it:      python socketserver_server.py
Talk to it:  python client.py --port 8081
Read first:  Handler, RobustMixIn, the three server classes. The rest can wait.
"""
import argparse
import os
import select
import signal
import socket
import socketserver
import sys
import threading
import time

try:
    import fcntl
except ImportError:     # Windows: there are no processes, so no lock between them is needed
    fcntl = None

PORT = 8081             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
RETRY_DELAY = 0.1       # seconds until the next try after a call has failed
answer = bytes.upper    # makes an answer of a client's bytes; see choose_answer
operator = None         # the Operator, if one answers by hand
server_class = None     # the class below that --mode chooses


# ---- the model

class Handler(socketserver.BaseRequestHandler):
    """One conversation. The class has accepted the client. It closes it when handle returns."""

    def handle(self):
        conn = self.request
        try:
            while True:
                data = conn.recv(BUFSIZE)       # blocks: waits for the data, then copies it
                if not data or operator and data.strip() == b'exit':
                    break
                if operator:
                    conn.sendall(operator.answer(data, conn, self.client_address))
                else:
                    conn.sendall(answer(data))
        except (OSError, MemoryError):
            pass    # connection lost, or no memory: only this conversation ends


class RobustMixIn:
    """What the classes of socketserver leave to those that use them."""
    allow_reuse_address = os.name == 'posix'    # on Windows two servers could share the port
    request_queue_size = max(socket.SOMAXCONN, 4096)    # with their backlog of 5, a burst waits
    daemon_threads = True       # the end does not wait for the conversations
    max_children = 1000000      # with the default of 40, client 41 waits until one leaves

    def server_bind(self):
        # an answer leaves at once, not held back to fill a packet; accepted sockets inherit this
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().server_bind()

    def get_request(self):
        """Accept a client. If that fails, wait: serve_forever would try again at once."""
        try:
            return super().get_request()
        except ConnectionError:     # the client left before we accepted it
            raise
        except OSError as error:
            report_accept_error(error)
            time.sleep(RETRY_DELAY)
            raise

    def handle_error(self, request, client_address):
        """Say why this client is lost, such as for want of a thread. The class closes it."""
        line = f'refused {format_address(client_address)}: {sys.exc_info()[1]}'
        print_line(line, sys.stderr)

    def getsockname(self):      # as a listener has it: `run` prints the address
        return self.socket.getsockname()


class RobustForkingMixIn(RobustMixIn):
    """The same for processes: each child is recorded, and none holds the port."""

    def process_request(self, request, client_address):
        """Fork. Stop signals are blocked until the child is recorded."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().process_request(request, client_address)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def finish_request(self, request, client_address):
        """We are in the child here. It needs no listener, and a signal may end it at once."""
        self.socket.close()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        super().finish_request(request, client_address)

    def server_close(self):
        """End the children that are left. Skip a child already reaped."""
        for pid in self.active_children or ():
            try:
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            except ChildProcessError:
                pass
        self.active_children = None
        super().server_close()


class SerialServer(RobustMixIn, socketserver.TCPServer):
    """One client after the other."""


class ThreadingServer(RobustMixIn, socketserver.ThreadingTCPServer):
    """A thread for each client."""


if hasattr(os, 'fork'):
    class ForkingServer(RobustForkingMixIn, socketserver.ForkingTCPServer):
        """A process for each client."""
else:
    ForkingServer = None


def serve(server):
    """Wait in poll (on Windows select), accept, hand the client over: all in the class."""
    server.serve_forever()


# ---- the operator

class Operator:
    """The person that types the answers, for one client at a time.

    Between threads a Lock is the queue for the prompt. Between processes it is a lock on a
    file: the kernel releases it if a process dies (fcntl(2)). A byte in the file says that
    the operator has left.
    """

    def __init__(self):
        self.lock = threading.Lock()
        # without a buffer: a line read ahead would be hidden from poll and from other processes
        self.stdin = sys.stdin and open(0, 'rb', buffering=0, closefd=False)
        self.left = False
        if fcntl:
            import tempfile
            self.file = tempfile.TemporaryFile()

    def answer(self, data, conn, address):
        """Show what the client at ADDRESS has sent. Return what the operator types."""
        with self.lock:             # blocks while another client has the prompt
            if fcntl:
                fcntl.lockf(self.file, fcntl.LOCK_EX)
            try:
                return self.ask(data, conn, format_address(address)) or answer(data)
            finally:
                if fcntl:
                    fcntl.lockf(self.file, fcntl.LOCK_UN)

    def ask(self, data, conn, client):
        """Return the answer for CLIENT; None if there is nobody to ask, or nobody to answer."""
        if self.has_left():
            return None
        shown = f'{client} says {data.decode("utf-8", "replace")!r}'
        if at_end(conn):
            print_line(f'{shown} and has left: it is not asked for')
            return None
        print_line(shown)
        line = b''
        while not line.strip():
            print_prompt(f'answer to {client}>>: ')
            if not wait_for_line(conn):
                print_line(f'\n{client} has left: no answer is needed')
                return None
            line = self.read_line()
            if not line:
                self.leave()
                return None
        if at_end(conn):
            print_line(f'{client} has left: nobody gets this answer')
        return line.strip()

    def read_line(self):
        try:
            return self.stdin.readline() if self.stdin else b''
        except OSError:     # the terminal is gone
            return b''

    def leave(self):
        """The operator has left: nobody is asked again."""
        print_line('\nthe operator has left: from now on answers are in upper case')
        self.left = True
        if fcntl:
            os.write(self.file.fileno(), b'.')

    def has_left(self):
        return self.left or fcntl and os.fstat(self.file.fileno()).st_size > 0


def at_end(conn):
    """Return whether the client has closed its side, or is lost."""
    conn.setblocking(False)
    try:
        return not conn.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        conn.setblocking(True)


def wait_for_line(conn):
    """Wait until the operator has typed a line; return False if the client leaves before."""
    if not hasattr(select, 'poll'):     # on Windows select takes sockets only
        return True
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(conn, select.POLLIN)
    while True:
        ready = [fd for fd, event in poll.poll()]
        if 0 in ready:
            return True
        if at_end(conn):
            return False
        poll.unregister(conn)           # it has sent more: that is for the next recv


def print_prompt(text):
    """Print TEXT and stay on its line."""
    try:
        print(text, end='', flush=True)
    except (OSError, AttributeError):   # nobody reads, or standard output is closed
        pass


# ---- start

MODES = {
    'thread': (ThreadingServer, 'socketserver, a thread for each client'),
    'serial': (SerialServer, 'socketserver, one client after the other'),
    'process': (ForkingServer, 'socketserver, a process for each client'),
}


def open_listener(family, address):
    """Return the server: its class calls socket(), bind() and listen()."""
    server_class.address_family = family
    return server_class(address, Handler)


def at_terminal():
    """Return whether standard input is a terminal (on Windows NUL claims to be one too)."""
    return sys.stdin and sys.stdin.isatty() and (
        os.name == 'posix' or 'Console' in type(sys.stdin.buffer.raw).__name__)


def main():
    global answer, operator, server_class
    parser = arguments()
    parser.add_argument('--mode', choices=MODES, default='thread',
                        help='who talks to a client (default %(default)s)')
    parser.add_argument('--reply', choices=['operator', 'upper'],
                        help='who answers (default: operator at a terminal)')
    args = parser.parse_args()
    answer = choose_answer(args)
    server_class, model = MODES[args.mode]
    if not server_class:
        sys.exit('--mode process needs os.fork, which is not here; take --mode thread')
    if args.trace:
        socket.socket = TracedSocket
        server_class = type(server_class.__name__, (TraceMixIn, server_class), {})
    if args.reply == 'operator' or not args.reply and at_terminal():
        operator, model = Operator(), model + ', an operator answers'
    server = listen(args.host, args.port)
    run(serve, server, model, clean_up=server.server_close)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket and prints a line per call."""
    number = count = 0      # of this connection; of all connections

    def accept(self):
        start = time.perf_counter()
        conn, addr = super().accept()
        TracedSocket.count = conn.number = TracedSocket.count + 1
        words = f'took {elapsed(start)} in get_request: {format_address(addr)} joined'
        trace(conn.number, 'accept', words)
        return conn, addr

    def recv(self, size, flags=0):
        if flags:       # at_end only looks
            return super().recv(size, flags)
        return self.traced_call('recv', size)

    def sendall(self, data):
        return self.traced_call('sendall', data)

    def traced_call(self, call, argument):
        start = time.perf_counter()
        try:
            result = getattr(super(), call)(argument)
        except OSError as error:
            trace(self.number, call, f'blocked {elapsed(start)}, then {error.strerror}')
            raise
        data = result if call == 'recv' else argument
        trace(self.number, call, f'blocked {elapsed(start)}, then ', data)
        return result


class TraceMixIn:
    """With --trace: which call of the class is which of the steps of section 1."""

    def server_bind(self):
        trace(None, 'socket', 'by the class, in __init__')
        super().server_bind()
        address = format_address(self.server_address)
        trace(None, 'bind', f'by the class, in server_bind: {address}')

    def server_activate(self):
        super().server_activate()
        backlog = self.request_queue_size
        trace(None, 'listen', f'by the class, in server_activate: backlog {backlog}')

    def process_request(self, request, client_address):
        trace(request.number, 'handle', f'begins, by process_request of {type(self).__name__}')
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        trace(request.number, 'close', 'by the class, in shutdown_request')
        super().shutdown_request(request)


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

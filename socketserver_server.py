"""The socketserver module (section 6 of the notes): the same steps in a class.

    ThreadingTCPServer(address, Handler)    socket(), bind(), listen()
    serve_forever()                         poll(), accept(), in a new thread
        Handler(...).handle()               recv() and sendall() block,
                                            and close() when handle returns

    process   |-------------- blocked in recv ---------------|  answer
    kernel    |---- waits for the data ----|---- copying ----|

Here an operator answers by hand, as in the notes. What a client has sent is
shown, and the operator types the answer, for one client at a time. That is
--reply operator, the default at a terminal. `exit` from the client ends its
conversation. --reply upper answers like every other server.

Run it:      python socketserver_server.py
Talk to it:  python client.py --port 8081
"""
import argparse
import os
import signal
import socket
import socketserver
import sys
import threading
import time

PORT = 8081             # the notes' own
BUFSIZE = 8192          # bytes that one recv takes at most; each thread that waits holds a buffer
RETRY_DELAY = 0.1       # seconds until the next try after accept has failed
answer = None           # turns a client's bytes into the answer; see choose_answer, Operator
operator = None         # the Operator, if one answers by hand
LEFT = 'the operator has left'
server_class = None     # the class below that --mode chooses


# ---- the model

class Handler(socketserver.BaseRequestHandler):
    """One conversation. The class has accepted the client. It closes it when handle returns."""

    def handle(self):
        conn = self.request
        try:
            while True:
                data = conn.recv(BUFSIZE)       # blocks: waits for the data, then copies it
                if not data or (operator and data.strip() == b'exit'):
                    break
                conn.sendall(answer(conn, data))    # blocks while the client does not read
                del data                    # a silent client keeps no message in memory
        except (OSError, MemoryError):
            pass    # connection lost, or no memory: only this conversation ends
        if operator:
            conn.close()        # now: the line below may have to wait for the end of a prompt
            operator.say(f'{format_address(self.client_address)} has left')


class RobustMixIn:
    """What socketserver leaves to us."""
    allow_reuse_address = os.name == 'posix'    # on Windows two servers could share the port
    request_queue_size = max(socket.SOMAXCONN, 4096)    # with their backlog of 5, a burst waits
    daemon_threads = True       # exit does not wait for conversations
    max_children = 1000000      # with the default of 40, client 41 waits until one leaves

    def server_bind(self):
        # an answer leaves at once, not held back to fill a packet; accepted sockets inherit this
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().server_bind()

    def get_request(self):
        """Accept. If that fails, wait a moment: the class itself would try at once, and spin."""
        while True:
            try:
                return self.socket.accept()     # mostly does not block: poll has waited
            except ConnectionError:             # the client left before we accepted it
                pass
            except (OSError, MemoryError) as error:
                report_accept_error(error)
                time.sleep(RETRY_DELAY)

    def process_request(self, request, client_address):
        """Hand this client over to a thread or process. If none could start, turn it away."""
        try:
            super().process_request(request, client_address)
        except (OSError, RuntimeError, MemoryError) as error:   # RuntimeError: no thread
            self.shutdown_request(request)
            print_line(f'refused {format_address(client_address)}: {why(error)}', sys.stderr)


class SerialServer(RobustMixIn, socketserver.TCPServer):
    """One client after the other."""
    process_request = socketserver.TCPServer.process_request    # the conversation: nothing starts


class ThreadingServer(RobustMixIn, socketserver.ThreadingTCPServer):
    """A thread for each client."""


class ForkingServer(RobustMixIn, getattr(socketserver, 'ForkingTCPServer', object)):
    """A process for each client. (Windows has no fork, and so no ForkingTCPServer.)"""

    def finish_request(self, request, client_address):
        self.socket.close()     # so a child that outlives us does not hold the port
        super().finish_request(request, client_address)


# ---- the operator

class Operator:
    """The person who types the answers, for one client at a time. While away, UPPER answers."""

    def __init__(self, upper):
        self.upper = upper
        self.lock = threading.Lock()
        self.away = None        # why nobody types, as said last

    def say(self, line):
        """Print LINE, but not into the prompt of another client."""
        with self.lock:
            print_line(line, sys.stdout)

    def answer(self, conn, data):
        """Show what a client has sent, and return what the operator types. OSError: it is lost."""
        client = format_address(conn.getpeername())
        with self.lock:             # blocks while another client has the prompt
            if self.away != LEFT and not in_background():
                print_line(f'{client} says {data.decode("utf-8", "replace")!r}', sys.stdout)
                line = self.ask(conn, client)
                if line is not None:
                    return line.encode('utf-8', 'replace')
            away = 'in the background, until fg' if in_background() else LEFT
            if away != self.away:
                self.away = away
                print_line(f'\n{away}: answers are in upper case', sys.stdout)
        return self.upper(conn, data)

    def ask(self, conn, client):
        """Return what is typed for CLIENT; an empty line only if it may be gone. None: nobody."""
        try:
            import termios
            termios.tcflush(0, termios.TCIFLUSH)    # what was typed before was not for this client
        except Exception:       # termios.error: not a terminal; ImportError: Windows
            pass
        while True:
            closed = has_closed(conn)
            if closed:
                print_line(f'{client} has closed its side: Enter skips it', sys.stdout)
            try:
                print(f'answer to {client}>>: ', end='', flush=True)
                line = input().strip()
            except (EOFError, OSError, RuntimeError):   # the end of input, or it is closed
                return None
            if line or closed:
                return line


def in_background():
    """Return whether another process group has the terminal: a prompt would stop this one."""
    try:
        return os.tcgetpgrp(0) != os.getpgrp()
    except (OSError, AttributeError):   # no job control: not a terminal, or Windows
        return False


def has_closed(conn):
    """Return whether the client has closed its side. It may still read: TCP cannot tell."""
    conn.setblocking(False)
    try:
        return not conn.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        conn.setblocking(True)


# ---- start

MODES = {'thread': ThreadingServer, 'serial': SerialServer, 'process': ForkingServer}


def open_listener(family, address):
    """Return the server, whose class calls socket(), bind() and listen(), and its address."""
    server_class.address_family = family
    server = server_class(address, Handler)
    return server, format_address(server.server_address)


def at_terminal():
    """Return whether standard input is a terminal (on Windows NUL claims to be one too)."""
    return sys.stdin and sys.stdin.isatty() and (
        os.name == 'posix' or 'Console' in type(sys.stdin.buffer.raw).__name__)


def main():
    global answer, operator, server_class
    parser = arguments()
    parser.add_argument('--mode', choices=MODES, default='thread', help='default %(default)s')
    parser.add_argument('--reply', choices=['operator', 'upper'],
                        help='who answers (default: operator at a terminal)')
    args = parser.parse_args()
    answer = choose_answer(args)
    server_class = MODES[args.mode]
    if args.mode == 'process' and args.reply == 'operator':
        parser.error('an operator is for one process: use --mode thread')
    if args.mode == 'process' and not hasattr(os, 'fork'):
        sys.exit('this platform has no os.fork; use --mode thread')
    if not args.reply and args.mode != 'process' and at_terminal():
        args.reply = 'operator'
    if args.reply == 'operator':
        operator = Operator(answer)
        answer = operator.answer
        if hasattr(signal, 'SIGTTIN'):  # a prompt sent to the background fails, and stops nobody
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    if args.trace:
        socket.socket = TracedSocket
        server_class = type(server_class.__name__, (TraceMixIn, server_class), {})
    model = 'an operator answers' if operator else f'--mode {args.mode}'
    run(lambda server: server.serve_forever(), f'socketserver, {model}', args)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket: a line when a call blocks, and when it returns."""
    number = count = 0      # of this connection; of all connections

    def accept(self):
        trace(None, 'accept', 'blocks ... in get_request')
        start = time.perf_counter()
        conn, addr = super().accept()   # conn is of this class too: Python calls socket.socket
        TracedSocket.count = conn.number = TracedSocket.count + 1
        trace(self.count, 'accept', f'blocked {elapsed(start)}, then {format_address(addr)} joined')
        return conn, addr

    def recv(self, size, flags=0):
        if flags:               # has_closed only looks
            return super().recv(size, flags)
        return self.traced_call('recv', size)

    def sendall(self, data):
        return self.traced_call('sendall', data)

    def traced_call(self, call, argument):
        trace(self.number, call, 'blocks ... in handle')
        start = time.perf_counter()
        try:
            result = getattr(super(), call)(argument)
        except OSError as error:
            trace(self.number, call, f'blocked {elapsed(start)}, then {why(error)}')
            raise
        data = result if call == 'recv' else argument
        trace(self.number, call, f'blocked {elapsed(start)}, then ', data)
        return result


class TraceMixIn:
    """With --trace: which call of the class is which of the steps of section 1."""

    def server_bind(self):
        super().server_bind()
        trace(None, 'bind', f'by the class, in server_bind: {format_address(self.server_address)}')

    def server_activate(self):
        super().server_activate()
        trace(None, 'listen', f'by the class, in server_activate: {self.request_queue_size}')

    def serve_forever(self):
        trace(None, 'poll', 'blocks ... in serve_forever')
        super().serve_forever()

    def process_request(self, request, client_address):
        trace(request.number, 'handle', f'begins, by process_request of {type(self).__name__}')
        super().process_request(request, client_address)
        trace(None, 'poll', 'blocks ... in serve_forever')

    def shutdown_request(self, request):
        trace(request.number, 'close', 'by the class, in shutdown_request')
        super().shutdown_request(request)


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

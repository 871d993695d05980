"""The socketserver module (section 6 of the notes): the same steps, packed into a class.

    ThreadingTCPServer(address, Handler)     socket(), bind(), listen()
    serve_forever()                          select() and accept(), then for each client a thread with
        Handler(...).handle()                recv() and sendall(), blocking as in section 1
                                             close() when handle returns

    process   |--------------- blocked in recv ----------------|  answer
    kernel    |---- wait for the data ----|-- copy the data ---|

Here an operator answers by hand, as in the notes (--reply operator, the default at a terminal): what a client has
sent is shown, and the operator types the answer, for one client at a time. `exit` from the client ends its
conversation. --reply upper answers like every other server.

Run it:  python socketserver_server.py      Talk to it:  python client.py --port 8081
"""
import argparse
import errno
import os
import signal
import socket
import socketserver
import sys
import threading
import time

PORT = 8081             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
MOMENT = 0.1            # seconds until we try again when there was no room for another client
answer = bytes.upper    # what a client gets for its bytes; --work puts a slow one here
operator = None         # who answers by hand instead, if anybody


class Handler(socketserver.BaseRequestHandler):
    """One conversation. The class has accepted the client, and closes it when handle returns."""

    def handle(self):
        conn = self.request
        try:
            while True:
                data = conn.recv(BUFSIZE)       # blocks: waits for the data, then copies them
                if not data or operator and data.strip() == b'exit':
                    break
                conn.sendall(operator.answer(data, self.client_address) if operator else answer(data))
        except OSError:
            pass    # reset, or vanished: that costs this conversation only


class Careful:
    """What the classes of socketserver leave to their users: mixed into each of them."""
    allow_reuse_address = os.name == 'posix'    # start again at once; on Windows it would let two servers share the port
    request_queue_size = max(socket.SOMAXCONN, 4096)    # the class's 5 would leave a crowd waiting for seconds
    daemon_threads = True       # Ctrl-C waits for nobody
    max_children = 1000000      # the forking class would take 40 clients, then none

    def get_request(self):
        """accept(). Without room for another client wait a moment: serve_forever would try again at once, for ever."""
        try:
            return super().get_request()
        except OSError as error:    # any other error is of a client that has gone before we came
            if error.errno in NO_ROOM:
                say_full(error)
                time.sleep(MOMENT)
            raise

    def handle_error(self, request, client_address):
        """There was no thread or process for this client, and the class is about to close it."""
        say(f'refused {name(client_address)}: {sys.exc_info()[1]}', sys.stderr)


class CarefulForking(Careful):
    """The same for processes: no child is lost sight of, and none holds the port."""

    def process_request(self, request, client_address):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPERS)      # no signal between fork and the note of the child
        try:
            super().process_request(request, client_address)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPERS)

    def finish_request(self, request, client_address):
        self.socket.close()     # we are in the child here: it needs no listener, and may die at once
        for number in STOPPERS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPERS)
        super().finish_request(request, client_address)


def serve(listener):
    """The loop of the class: wait in select, accept, hand the client over."""
    try:
        server.serve_forever()
    finally:
        for pid in list(getattr(server, 'active_children', None) or []):
            try:
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            except ChildProcessError:       # it had ended already
                pass


class Operator:
    """Who types the answers. A token in a pipe goes from hand to hand, between threads or processes: one prompt at once."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()
        self.stdin = sys.stdin and open(0, 'rb', buffering=0, closefd=False)    # takes one line: the next is another's
        os.write(self.write_end, b'+')

    def answer(self, data, address):
        """Show what the client at ADDRESS has sent, and return what the operator types."""
        token = os.read(self.read_end, 1)       # blocks while somebody else has the prompt
        try:
            return self.ask(data, address) if token == b'+' else answer(data)
        except EOFError:
            token = b'-'                        # nobody will be asked any more
            say('\nthe operator has left: from now on answers are in upper case')
            return answer(data)
        finally:
            os.write(self.write_end, token)

    def ask(self, data, address):
        say(f'{name(address)} says {data.decode("utf-8", "replace")!r}')
        while True:
            try:
                print(f'answer to {name(address)}>>: ', end='', flush=True)
                line = self.stdin.readline() if self.stdin else b''
            except OSError:     # there is no terminal any more: that is not the client's fault
                line = b''
            if not line:
                raise EOFError
            if line.strip():
                return line.strip()


class TracedSocket(socket.socket):
    """What --trace puts in the place of a socket: it draws each call. Without --trace no line of this runs."""
    number = joined = 0

    def accept(self):
        start = time.perf_counter()
        conn, addr = super().accept()
        conn = TracedSocket(fileno=conn.detach())
        TracedSocket.joined = conn.number = TracedSocket.joined + 1
        draw(conn.number, 'accept', f'took {since(start)} in get_request: {name(addr)} joined')
        return conn, addr

    def recv(self, size):
        return self.drawn('recv', size)

    def sendall(self, data):
        return self.drawn('sendall', data)

    def drawn(self, call, argument):
        start = time.perf_counter()
        try:
            result = getattr(super(), call)(argument)
        except OSError as error:
            draw(self.number, call, f'blocked {since(start)}, then {error.strerror}: it has left')
            raise
        draw(self.number, call, f'blocked {since(start)}, then ', result if call == 'recv' else argument)
        return result


class Traced:
    """With --trace: which call of the class is which of the steps of section 1."""

    def server_bind(self):
        draw(None, 'socket', 'by the class, in __init__')
        super().server_bind()
        draw(None, 'bind', f'by the class, in server_bind: {name(self.server_address)}')

    def server_activate(self):
        super().server_activate()
        draw(None, 'listen', f'by the class, in server_activate: a backlog of {self.request_queue_size}')
        self.socket = TracedSocket(fileno=self.socket.detach())

    def process_request(self, request, client_address):
        draw(request.number, 'handle', f'begins, by process_request of {self.kind}')
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        draw(request.number, 'close', 'by the class, in shutdown_request')
        super().shutdown_request(request)


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


def listen(host, port, *bases):
    """Return a server of these BASES on HOST and PORT; if that cannot be, exit with status 1 and the reason."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = type('Server', bases, {'address_family': family})(address, Handler)    # socket(), bind(), listen()
        server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)     # an answer leaves at once
        return server
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        sys.exit(f'cannot listen on host {host!a}, port {port}: {reason}')


def at_terminal():
    """Whether standard input is a terminal (on Windows NUL claims to be one too)."""
    return sys.stdin and sys.stdin.isatty() and (os.name == 'posix' or 'Console' in type(sys.stdin.buffer.raw).__name__)


def main():
    global answer, operator, server
    parser = arguments()
    parser.add_argument('--mode', choices=MODES, default='thread', help='who talks to a client (default %(default)s)')
    parser.add_argument('--reply', choices=['operator', 'upper'], help='who answers (default: operator at a terminal)')
    args = parser.parse_args()
    careful, base, model = MODES[args.mode]
    if not hasattr(socketserver, base):
        sys.exit('--mode process needs os.fork, which this platform does not have; take --mode thread')
    answer = slow(args.work) if args.work else answer
    if sys.stdout:
        sys.stdout.reconfigure(errors='backslashreplace')       # an old Windows console cannot show every text
    if args.reply == 'operator' or not args.reply and at_terminal():
        operator, model = Operator(), model + ', an operator answers'
    Traced.kind = base
    server = listen(args.host, args.port, *([Traced] if args.trace else []), careful, getattr(socketserver, base))
    run(serve, server.socket, model)


MODES = {
    'thread': (Careful, 'ThreadingTCPServer', 'socketserver, a thread for each client'),
    'serial': (Careful, 'TCPServer', 'socketserver, one client after the other'),
    'process': (CarefulForking, 'ForkingTCPServer', 'socketserver, a process for each client'),
}

if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:       # before there was a server, while a name is looked up
        sys.exit(1)

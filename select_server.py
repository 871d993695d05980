"""I/O multiplexing with select (section 3 of the notes).

    process   |--- asleep in select: waited ---|  recv |-- copied --|  answer
    kernel    |--- waits for anyone's data ----|       |-- copying -|

One call waits for all sockets, then recv only copies. That is two calls for a
read, so one client is not served faster. But one thread serves many clients.

A client that does not take its answer is not read from until it has taken it.
Meanwhile it is in wlist, not in rlist. select looks through all sockets at each
call. It cannot watch a descriptor that is numbered 1024 or above.

Run it:      python select_server.py --trace
Talk to it:  python client.py --port 8083
"""
import argparse
import os
import select
import signal
import socket
import sys
import time

PORT = 8083             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
RETRY_DELAY = 0.1       # seconds until the next try after accept has failed
answer = None           # turns a client's bytes into the answer; see choose_answer
rlist = set()   # sockets that we wait to read from (the notes have a list)
wlist = {}      # clients that we wait to write to, each with the rest of its answer
accept_failed = False


# ---- the model

def serve(listener):
    """Wait for all sockets, then serve those that are ready."""
    global accept_failed
    listener.setblocking(False)
    rlist.add(listener)
    while True:
        timeout = None          # while nobody speaks there is nothing to do
        if accept_failed and len(rlist) + len(wlist) == 1:
            time.sleep(RETRY_DELAY)     # nobody is connected; Windows cannot wait for no socket
        elif accept_failed:     # select would return at once, again and again: for one round
            timeout = RETRY_DELAY       # wait for the clients only
            rlist.remove(listener)
        accept_failed = False
        rl, wl, xl = select.select(rlist, wlist, [], timeout)   # blocks until one is ready
        if timeout:
            rlist.add(listener)
        for sock in rl:
            if sock is listener:
                accept(listener)
            else:
                read(sock)
        for conn in wl:
            write(conn)


def accept(listener):
    """Take the client that waits."""
    global accept_failed
    try:
        conn, addr = listener.accept()
    except (BlockingIOError, ConnectionError):
        return                      # it left before we accepted it
    except (OSError, MemoryError) as error:
        accept_failed = True
        report_accept_error(error)
        return
    try:
        conn.setblocking(False)     # on Linux it does not inherit this from the listener
        select.select([*rlist, *wlist, conn], [], [], 0)    # can it be watched?
        rlist.add(conn)
    except (OSError, ValueError, MemoryError) as error:
        conn.close()
        reason = f'it cannot be watched ({why(error)})'
        print_line(f'refused {format_address(addr)}: {reason}', sys.stderr)


def read(conn):
    """CONN has sent something: copy it and answer."""
    try:
        data = conn.recv(BUFSIZE)   # does not wait: select has waited
        if data:
            send(conn, answer(conn, data))
        else:
            close(conn)
    except BlockingIOError:         # a false alarm (select(2), BUGS)
        pass
    except (OSError, MemoryError):  # connection lost, or no memory: only this one ends
        close(conn)


def write(conn):
    """CONN takes bytes again: send the rest of its answer."""
    try:
        send(conn, wlist[conn])
    except (OSError, MemoryError):
        close(conn)


def send(conn, data):
    """Send what the kernel takes of DATA. Until the rest is sent, do not read from CONN."""
    try:
        sent = conn.send(data)
    except BlockingIOError:
        sent = 0
    if sent < len(data):
        wlist[conn] = data[sent:]       # first: there may be no memory for it
        rlist.discard(conn)
    elif conn in wlist:
        rlist.add(conn)
        del wlist[conn]


def close(conn):
    """Forget CONN and give its descriptor back."""
    wlist.pop(conn, None)
    rlist.discard(conn)
    conn.close()


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
        select.select([listener], [], [], 0)    # ValueError: its number is 1024 or above
        return listener, format_address(listener.getsockname())
    except (OSError, ValueError):
        listener.close()
        raise


def main():
    global answer
    parser = arguments()
    args = parser.parse_args()
    answer = choose_answer(args)
    if args.trace:
        socket.socket, select.select = TracedSocket, traced_select
    run(serve, 'multiplexing with select', args)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket and prints a line per call."""
    number = count = 0      # of this connection; of all connections

    def accept(self):
        start = time.perf_counter()
        conn, addr = super().accept()   # conn is of this class too: Python calls socket.socket
        TracedSocket.count = conn.number = TracedSocket.count + 1
        trace(conn.number, 'accept', f'took {elapsed(start)}: {format_address(addr)} joined')
        return conn, addr

    def recv(self, size):
        return self.traced_call('recv', size)

    def send(self, data):
        return self.traced_call('send', data)

    def traced_call(self, call, argument):
        start = time.perf_counter()
        try:
            result = getattr(super(), call)(argument)
        except OSError as error:
            trace(self.number, call, f'took {elapsed(start)}: {why(error)}')
            raise
        data = result if call == 'recv' else argument
        part = f'{result} of ' if call == 'send' and result < len(data) else ''
        trace(self.number, call, f'copied in {elapsed(start)}: {part}', data)
        return result


def traced_select(rlist, wlist, xlist, timeout, real_select=select.select):
    """The model's wait: a line if it blocks, and one for how long it was, and what is ready."""
    start = time.perf_counter()
    rl, wl, xl = real_select(rlist, wlist, xlist, 0)
    if timeout == 0:            # only a question of `accept`
        return rl, wl, xl
    if not rl and not wl:
        trace(None, 'select', 'blocks ...')
        rl, wl, xl = real_select(rlist, wlist, xlist, timeout)
    ready = [f'read #{sock.number}' if sock.number else 'read listener' for sock in rl]
    ready += [f'write #{sock.number}' for sock in wl]
    words = f'waited {elapsed(start)}, {len(ready)} of {len(rlist) + len(wlist)} ready: '
    trace(None, 'select', words + (', '.join(ready) or 'the time is up'))
    return rl, wl, xl


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

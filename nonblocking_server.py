"""Non-blocking I/O (section 2 of the notes).

    process   recv? recv? recv? recv? recv? recv? |-- copied --|  answer
              not   not   not   not   not         |            |
              yet   yet   yet   yet   yet         |            |
    kernel    |------ waits for the data ---------|-- copying -|

recv never waits. If no data has come, it fails at once with EAGAIN: not yet.
Then the process does other work, looks at the other clients, and asks again
(polling). It asks even while nobody speaks, so one processor is always busy.
With --pause it asks less often, and answers late.

A client that does not take its answer is not read from until it has taken it.
Meanwhile it is in wlist, not in rlist.

Run it:      python nonblocking_server.py --trace
Talk to it:  python client.py --port 8083
"""
import argparse
import os
import signal
import socket
import sys
import time

PORT = 8083             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
ACCEPTS = 64            # clients that one round takes at most
answer = None           # turns a client's bytes into the answer; see choose_answer
pause = 0               # seconds to sleep between two rounds of polling; --pause changes it
rlist = set()   # clients that we ask for bytes (the notes have a list)
wlist = {}      # clients we still owe bytes, each with the rest of its answer
work_rounds = 0     # how often the loop was free for other work


# ---- the model

def serve(listener):
    """Ask every socket in turn, again and again. No call here blocks."""
    listener.setblocking(False)
    while True:
        for _ in range(ACCEPTS):        # no more: a flood of clients must not hold up the others
            if not accept(listener):
                break
        for conn in rlist.copy():       # a copy, since read may remove from it
            read(conn)
        for conn in list(wlist):        # and so may write
            write(conn)
        other_work()


def other_work():
    """Do what does not have to wait for the clients. Here we count, and sleep with --pause."""
    global work_rounds
    work_rounds += 1
    if pause:
        time.sleep(pause)


def accept(listener):
    """Take a client if one waits; return whether one did."""
    try:
        conn, addr = listener.accept()
        conn.setblocking(False)     # on Linux it does not inherit this from the listener
        rlist.add(conn)
        return True
    except (BlockingIOError, ConnectionError):  # EAGAIN: not yet; or it left before we accepted
        return False
    except (OSError, MemoryError) as error:     # the next round tries again
        report_accept_error(error)
        return False


def read(conn):
    """If CONN has sent something, copy it and answer."""
    try:
        data = conn.recv(BUFSIZE)   # does not wait
        if data:
            send(conn, answer(conn, data))
        else:
            close(conn)
    except BlockingIOError:         # EAGAIN: not yet
        pass
    except (OSError, MemoryError):  # connection lost, or no memory: only this one ends
        close(conn)


def write(conn):
    """Offer CONN the rest of its answer."""
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
        return listener, format_address(listener.getsockname())
    except OSError:
        listener.close()
        raise


def main():
    global answer, pause
    parser = arguments()
    parser.add_argument('--pause', default=0, type=number_between(float, 0, 86400),
                        metavar='SECONDS', help='time to sleep between polling rounds (default 0)')
    args = parser.parse_args()
    answer = choose_answer(args)
    pause = args.pause
    if args.trace:
        socket.socket = TracedSocket
    run(serve, 'non-blocking, polling' + (f' every {pause:g} s' if pause else ''), args)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket. It counts the calls that fail with "not yet" and
    prints a line for each other call."""
    number = count = 0      # of this connection; of all connections
    not_yet = 0             # how many calls have failed with "not yet" since the last success

    def accept(self):
        (conn, addr), took = self.counted_call('accept')    # conn is of this class too:
        TracedSocket.count = conn.number = TracedSocket.count + 1   # Python calls socket.socket
        trace(conn.number, 'accept', f'took {took}: {format_address(addr)} joined')
        return conn, addr

    def recv(self, size):
        data, took = self.counted_call('recv', size)
        trace(self.number, 'recv', f'copied in {took}: ', data)
        return data

    def send(self, data):
        sent, took = self.counted_call('send', data)
        part = f'{sent} of ' if sent < len(data) else ''
        trace(self.number, 'send', f'copied in {took}: {part}', data)
        return sent

    def counted_call(self, call, *arguments):
        """Return what CALL returns, and how long it took."""
        start = time.perf_counter()
        if not self.not_yet:
            self.first_asked = start
            self.first_round = work_rounds
        try:
            result = getattr(super(), call)(*arguments)
        except BlockingIOError:
            self.not_yet += 1
            raise
        except OSError as error:
            if self.number:     # what accept says is reported only once
                trace(self.number, call, f'took {elapsed(start)}: {why(error)}')
            raise
        took = elapsed(start)
        if self.not_yet:
            self.trace_not_yet(call)
        return result, took

    def trace_not_yet(self, call):
        asked = f'asked {self.not_yet + 1} times in {elapsed(self.first_asked)}'
        trace(self.number, call, f'{asked}, {times(self.not_yet)} "not yet"')
        rounds = work_rounds - self.first_round
        trace(None, 'work', f'other work done {times(rounds)} meanwhile')
        self.not_yet = 0


def times(count):
    return 'once' if count == 1 else f'{count} times'


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

"""Blocking I/O (section 1 of the notes).

    process   |-------------- blocked in recv ---------------|  answer
    kernel    |---- waits for the data ----|---- copying ----|

recv returns only when data has come and has been copied. Until then this
thread cannot do anything else. So who talks to the next client?

    --mode serial    nobody, until the first client has left (the problem)
    --mode thread    a new thread for each client (the notes' answer)
    --mode process   a new process for each client (the same, but heavier)
    --mode pool      one of --pool-size threads: client N+1 waits for a free one

Run it:      python blocking_server.py --trace
Talk to it:  python client.py
"""
import argparse
import os
import queue
import signal
import socket
import sys
import threading
import time

PORT = 8080             # the notes' own
BUFSIZE = 8192          # bytes that one recv takes at most; each thread that waits holds a buffer
RETRY_DELAY = 0.1       # seconds until the next try after accept has failed
answer = None           # turns a client's bytes into the answer; see choose_answer
pool_size = 4           # threads of the pool; --pool-size changes it


# ---- the model

def communicate(conn):
    """Talk with one client until it leaves."""
    with conn:
        try:
            while True:
                data = conn.recv(BUFSIZE)       # blocks: waits for the data, then copies it
                if not data:
                    break
                conn.sendall(answer(conn, data))    # blocks while the client does not read
                del data                    # a silent client keeps no message in memory
        except (OSError, MemoryError):
            pass    # connection lost, or no memory: only this conversation ends


def serve_serial(listener):
    """Talk with one client after the other. While communicate blocks, nobody accepts."""
    while True:
        conn, addr = accept_with_retry(listener)
        communicate(conn)


def serve_thread(listener):
    """Start a thread for each client. Each thread blocks in its own recv."""
    while True:
        conn, addr = accept_with_retry(listener)
        try:
            threading.Thread(target=communicate, args=(conn,), daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            refuse(conn, addr, f'no thread could start ({why(error)})')


def serve_process(listener):
    """Start a process for each client: fork copies this one, with its descriptors."""
    signal.signal(signal.SIGCHLD, reap)
    while True:
        conn, addr = accept_with_retry(listener)
        try:
            if os.fork() == 0:
                listener.close()    # so a child that outlives us does not hold the port
                communicate(conn)
                os._exit(0)
            conn.close()            # the child has its own copy
        except OSError as error:
            refuse(conn, addr, f'no process could start ({why(error)})')


def reap(signum, frame):
    """Collect the children that have ended: until then they are zombies (wait(2))."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:   # no child is left
        pass


def serve_pool(listener):
    """Start the threads once. They take the clients from a queue, where the next one waits."""
    clients = queue.SimpleQueue()
    try:
        for _ in range(pool_size):
            threading.Thread(target=worker, args=(clients,), daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        sys.exit(f'cannot start {pool_size} threads ({why(error)}); try a smaller --pool-size')
    while True:
        clients.put(accept_with_retry(listener))


def worker(clients):
    """Talk with one client after the other. This is one thread of the pool."""
    while True:
        conn, addr = clients.get()      # blocks while no client waits
        communicate(conn)


# ---- out of descriptors

def accept_with_retry(listener):
    """Return the next client. If accept fails, wait a moment: connected clients are served."""
    while True:
        try:
            return listener.accept()    # blocks while no client is in the kernel's accept queue
        except ConnectionError:         # the client left before we accepted it
            pass
        except (OSError, MemoryError) as error:
            report_accept_error(error)
            time.sleep(RETRY_DELAY)


def refuse(conn, addr, reason):
    """Turn this client away."""
    conn.close()
    print_line(f'refused {format_address(addr)}: {reason}', sys.stderr)


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


MODES = {'serial': serve_serial, 'thread': serve_thread, 'process': serve_process,
         'pool': serve_pool}


def main():
    global answer, pool_size
    parser = arguments()
    parser.add_argument('--mode', choices=MODES, default='thread', help='default %(default)s')
    parser.add_argument('--pool-size', type=number_between(int, 1, 100000), default=4,
                        metavar='N', help='threads of the pool (default %(default)s)')
    args = parser.parse_args()
    if args.mode == 'process' and not hasattr(os, 'fork'):
        sys.exit('this platform has no os.fork; use --mode thread')
    answer = choose_answer(args)
    pool_size = args.pool_size
    if args.trace:
        socket.socket, queue.SimpleQueue = TracedSocket, TracedQueue
    run(MODES[args.mode], f'blocking, --mode {args.mode}', args)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket: a line when a call blocks, and when it returns."""
    number = count = 0      # of this connection; of all connections

    def accept(self):
        trace(None, 'accept', 'blocks ...')
        start = time.perf_counter()
        conn, addr = super().accept()   # conn is of this class too: Python calls socket.socket
        TracedSocket.count = conn.number = TracedSocket.count + 1
        trace(self.count, 'accept', f'blocked {elapsed(start)}, then {format_address(addr)} joined')
        return conn, addr

    def recv(self, size):
        return self.traced_call('recv', size)

    def sendall(self, data):
        return self.traced_call('sendall', data)

    def traced_call(self, call, argument):
        trace(self.number, call, 'blocks ...')
        start = time.perf_counter()
        try:
            result = getattr(super(), call)(argument)
        except OSError as error:
            trace(self.number, call, f'blocked {elapsed(start)}, then {why(error)}')
            raise
        data = result if call == 'recv' else argument
        trace(self.number, call, f'blocked {elapsed(start)}, then ', data)
        return result


class TracedQueue(queue.SimpleQueue):
    """With --trace, the queue of the pool: a line when a client is put into it and taken out."""

    def put(self, client):
        client[0].queued = time.perf_counter()
        trace(client[0].number, 'queue', f'queued, {self.qsize()} ahead')
        super().put(client)

    def get(self):
        trace(None, 'queue', 'blocks ...')
        conn, addr = super().get()
        trace(conn.number, 'queue', f'waited {elapsed(conn.queued)} for a free worker')
        return conn, addr


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

"""Blocking I/O (section 1 of the notes).

    process   |-------------- blocked in recv ---------------|  answer
    kernel    |---- wait for the data ----|---- copying -----|

recv returns only when data has come and has been copied. Until then this
thread cannot do anything else. So who talks to the next client?

    --mode serial    nobody, until the first client has left (the problem)
    --mode thread    a new thread for each client (the notes' answer)
    --mode process   a new process for each client (the same, but heavier)
    --mode pool      one of --pool-size threads: client N+1 waits for a free one

A client can connect even if nobody accepts it yet: the kernel completes the
connection and keeps it in the backlog of the listening socket.

Run it:      python blocking_server.py --trace
Talk to it:  python client.py
Read first:  communicate, serve_serial, serve_thread, serve_process, serve_pool.
             The rest can wait.
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
BUFSIZE = 32768         # bytes that one recv takes at most
RETRY_DELAY = 0.1       # seconds until the next try after a call has failed
answer = bytes.upper    # makes an answer of a client's bytes; see choose_answer
pool_size = 4           # threads of the pool; --pool-size changes it

children = set()        # pids of the processes that serve a client


# ---- the model

def communicate(conn):
    """Talk with one client until it leaves."""
    with conn:
        try:
            while True:
                data = conn.recv(BUFSIZE)       # blocks: waits for the data, then copies it
                if not data:
                    break
                conn.sendall(answer(data))      # blocks while the client does not read
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
            refuse(conn, addr, f'no thread for it ({error})')


def serve_process(listener):
    """Start a process for each client: fork copies this one, with its descriptors."""
    signal.signal(signal.SIGCHLD, reap_children)
    while True:
        conn, addr = accept_with_retry(listener)
        try:
            if fork_child() == 0:
                listener.close()
                communicate(conn)
                os._exit(0)
            conn.close()        # the child has its own copy
        except OSError as error:
            refuse(conn, addr, f'no process for it ({error.strerror})')


def serve_pool(listener):
    """Start the threads once. They take the clients from a queue, where the next one waits."""
    clients = queue.SimpleQueue()
    try:
        for _ in range(pool_size):
            threading.Thread(target=worker, args=(clients,), daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        line = f'no pool of {pool_size} threads here ({error}); take a smaller --pool-size'
        print_line(line, sys.stderr)
        os._exit(1)     # on Windows this is not the main thread: sys.exit would end only it
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
            return listener.accept()    # blocks until a client connects
        except ConnectionError:         # the client left before we accepted it
            pass
        except OSError as error:
            report_accept_error(error)
            time.sleep(RETRY_DELAY)


# ---- processes: what the kernel asks of a parent

def fork_child():
    """Fork. Signals are blocked until the child is recorded, so no handler can miss it."""
    blocked_signals = {signal.SIGCHLD, *STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked_signals)
    try:
        pid = os.fork()
        if pid:
            children.add(pid)
        else:
            for number in blocked_signals:
                signal.signal(number, signal.SIG_DFL)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked_signals)


def reap_children(signum, frame):
    """Collect the children that have ended: until then they are zombies (wait(2))."""
    try:
        pid = os.waitpid(-1, os.WNOHANG)[0]
        while pid:
            children.discard(pid)
            pid = os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:   # no child is left
        pass


def kill_children():
    """End the children that are left. Skip a child already reaped: its pid may belong to
    another process."""
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in children:
        try:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        except ChildProcessError:
            pass


# ---- start

def open_listener(family, address):
    """Return a listening socket. These are the first steps of every server in the notes."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == 'posix':      # restart at once; on Windows two servers could share the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # an answer leaves at once, not held back to fill a packet; accepted sockets inherit this
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(address)
    # with the notes' backlog of 5, a burst of clients would wait for seconds
    listener.listen(max(socket.SOMAXCONN, 4096))
    return listener


MODES = {
    'thread': (serve_thread, 'blocking, a thread for each client'),
    'serial': (serve_serial, 'blocking, one client after the other'),
    'process': (serve_process, 'blocking, a process for each client'),
    'pool': (serve_pool, 'blocking, a pool of threads, size {}'),
}


def main():
    global answer, pool_size
    parser = arguments()
    parser.add_argument('--mode', choices=MODES, default='thread',
                        help='who talks to a client (default %(default)s)')
    parser.add_argument('--pool-size', type=number_between(int, 1, 100000), default=4,
                        metavar='N', help='threads of the pool (default %(default)s)')
    args = parser.parse_args()
    if args.mode == 'process' and not hasattr(os, 'fork'):
        sys.exit('--mode process needs os.fork, which is not here; take --mode thread')
    answer, pool_size = choose_answer(args), args.pool_size
    if args.trace:
        socket.socket, queue.SimpleQueue = TracedSocket, TracedQueue
    serve, model = MODES[args.mode]
    listener = listen(args.host, args.port)
    run(serve, listener, model.format(pool_size), clean_up=kill_children)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket and prints a line per call."""
    number = count = 0      # of this connection; of all connections

    def accept(self):
        start = time.perf_counter()
        conn, addr = super().accept()
        TracedSocket.count = conn.number = TracedSocket.count + 1
        words = f'blocked {elapsed(start)}, then {format_address(addr)} joined'
        trace(conn.number, 'accept', words)
        return conn, addr

    def recv(self, size):
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


class TracedQueue(queue.SimpleQueue):
    """With --trace, the queue of the pool: a line when a client is put into it and taken out."""

    def put(self, client):
        client[0].queued = time.perf_counter()
        trace(client[0].number, 'queue', f'put into it, {self.qsize()} before it')
        super().put(client)

    def get(self):
        conn, addr = super().get()
        trace(conn.number, 'queue', f'waited {elapsed(conn.queued)} for a free worker')
        return conn, addr


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

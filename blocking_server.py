"""Blocking I/O (section 1 of the notes): recv sleeps until data has come and has been copied.

    process   |--------------- blocked in recv ----------------|  answer
    kernel    |---- wait for the data ----|-- copy the data ---|

While it is blocked, a thread of control can do nothing else. So who talks to the next client?

    --mode serial    nobody: it waits until the first client has left (the problem)
    --mode thread    a thread of its own for each client (the notes' answer)
    --mode process   a process of its own for each client (the same, apart and heavier)
    --mode pool      one of --pool-size threads, made once: client N+1 waits for a free one

Run it:  python blocking_server.py --trace      Talk to it:  python client.py
"""
import argparse
import errno
import os
import queue
import signal
import socket
import sys
import threading
import time

PORT = 8080             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
MOMENT = 0.1            # seconds until we try again when there was no room for another client
answer = bytes.upper    # what a client gets for its bytes; --work puts a slow one here


def communicate(conn):
    """Talk with one client until it leaves."""
    with conn:
        try:
            while True:
                data = conn.recv(BUFSIZE)       # blocks: waits for the data, then copies them
                if not data:
                    break
                conn.sendall(answer(data))      # blocks while the client does not read
        except OSError:
            pass    # reset, or vanished: that costs this conversation only


def serve_serial(server):
    """One client after the other: while communicate blocks, nobody accepts."""
    while True:
        conn, addr = accept_or_wait(server)
        communicate(conn)


def serve_thread(server):
    """A thread for each client: each blocks in a recv of its own."""
    while True:
        conn, addr = accept_or_wait(server)
        try:
            threading.Thread(target=communicate, args=(conn,), daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            refuse(conn, addr, f'no thread for it ({error})')


def serve_process(server):
    """A process for each client: fork copies this one, descriptors and all."""
    children = set()
    signal.signal(signal.SIGCHLD, lambda *_: reap(children))
    try:
        while True:
            conn, addr = accept_or_wait(server)
            try:
                if fork(children) == 0:
                    server.close()
                    communicate(conn)
                    os._exit(0)
                conn.close()        # the child has its own copy
            except OSError as error:
                refuse(conn, addr, f'no process for it ({error.strerror})')
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kill(children)


def serve_pool(server):
    """Threads made once take the clients from a queue; the next client waits there."""
    clients = Queue()
    try:
        for _ in range(pool_size):
            threading.Thread(target=worker, args=(clients,), daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        say(f'no pool of {pool_size} threads here ({error}); take a smaller --pool-size', sys.stderr)
        os._exit(1)     # on Windows we are a thread ourselves: sys.exit would end only that
    while True:
        clients.put(accept_or_wait(server))


def worker(clients):
    """One thread of the pool: when a client leaves, it takes the next."""
    while True:
        conn, addr = clients.get()      # blocks while nobody waits
        communicate(conn)


def accept_or_wait(server):
    """Return the next client. Without a descriptor for it, say so and try again soon: those connected are served."""
    while True:
        try:
            return server.accept()      # blocks until somebody connects
        except OSError as error:        # any other error is of a client that has gone before we came
            if error.errno in NO_ROOM:
                say_full(error)
                time.sleep(MOMENT)


def fork(children):
    """Fork, and note the child in CHILDREN. Signals wait meanwhile, so that none meets a child that is not noted."""
    held = {signal.SIGCHLD, *STOPPERS}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        pid = os.fork()
        if pid:
            children.add(pid)
        else:
            for number in held:
                signal.signal(number, signal.SIG_DFL)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


def reap(children):
    """Collect the children that have ended: until then each is a zombie (wait(2)). Another SIGCHLD may interrupt this."""
    try:
        pid = os.waitpid(-1, os.WNOHANG)[0]
        while pid:
            children.discard(pid)
            pid = os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        pass


def kill(children):
    """End the children that are left. One that has been waited for is not: its number may be another's by now."""
    for pid in children:
        try:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        except ChildProcessError:
            pass


class TracedSocket(socket.socket):
    """What --trace puts in the place of a socket: it draws each call. Without --trace no line of this runs."""
    number = joined = 0

    def accept(self):
        start = time.perf_counter()
        conn, addr = super().accept()
        conn = TracedSocket(fileno=conn.detach())
        TracedSocket.joined = conn.number = TracedSocket.joined + 1
        draw(conn.number, 'accept', f'blocked {since(start)}, then {name(addr)} joined')
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


class TracedQueue(queue.SimpleQueue):
    """The queue before the pool with --trace: it draws who waits for a free worker, and how long."""

    def put(self, client):
        client[0].queued = time.perf_counter()
        draw(client[0].number, 'queue', f'put into it, {self.qsize()} before it')
        super().put(client)

    def get(self):
        conn, addr = super().get()
        draw(conn.number, 'queue', f'waited {since(conn.queued)} for a free worker')
        return conn, addr


Queue = queue.SimpleQueue   # --trace puts TracedQueue here


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


def listen(host, port):
    """Return a socket that listens on HOST and PORT; if that cannot be, exit with status 1 and the reason."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = Socket(family, kind, proto)
        if os.name == 'posix':      # start again at once; on Windows it would let two servers share the port
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)    # an answer leaves at once; clients inherit it
        server.bind(address)
        server.listen(max(socket.SOMAXCONN, 4096))      # the notes' 5 would leave a crowd waiting for seconds
        return server
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        sys.exit(f'cannot listen on host {host!a}, port {port}: {reason}')


def main():
    global answer, Socket, Queue, pool_size
    parser = arguments()
    parser.add_argument('--mode', choices=MODES, default='thread', help='who talks to a client (default %(default)s)')
    parser.add_argument('--pool-size', type=within(int, 1, 100000), default=4, metavar='N',
                        help='how many threads the pool has (default %(default)s)')
    args = parser.parse_args()
    if args.mode == 'process' and not hasattr(os, 'fork'):
        sys.exit('--mode process needs os.fork, which this platform does not have; take --mode thread')
    answer = slow(args.work) if args.work else answer
    if args.trace:
        Socket, Queue = TracedSocket, TracedQueue
    pool_size = args.pool_size
    serve, model = MODES[args.mode]
    run(serve, listen(args.host, args.port), model.format(pool_size))


MODES = {
    'thread': (serve_thread, 'blocking, a thread for each client'),
    'serial': (serve_serial, 'blocking, one client after the other'),
    'process': (serve_process, 'blocking, a process for each client'),
    'pool': (serve_pool, 'blocking, a pool of threads, size {}'),
}

if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:       # before there was a server, while a name is looked up
        sys.exit(1)

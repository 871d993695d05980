"""I/O multiplexing with select (section 3 of the notes): one call waits for all sockets at once.

    process   |----- blocked in select: waited ------|  recv |--- copied ---|  answer
    kernel    |---- wait for the data of anyone -----|       |-- copy data -|

Two calls where blocking I/O has one, so one client is not served faster; but many are served by one thread. A
client that does not take its answer moves from rlist to wlist: select says when it takes bytes again, and until then
nothing is read from it. select looks through all sockets at each call, and cannot watch descriptors from 1024 on.

Run it:  python select_server.py --trace      Talk to it:  python client.py --port 8083
"""
import argparse
import errno
import os
import select
import signal
import socket
import sys
import threading
import time

PORT = 8083             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
MOMENT = 0.1            # seconds until we try again when there was no room for another client
answer = bytes.upper    # what a client gets for its bytes; --work puts a slow one here

rlist = []      # the sockets that we wait to read from: the listener, and the clients
wlist = []      # the clients that we owe bytes: we wait until they take these, and read no more until they have
owed = {}       # what we owe to each client in wlist
resting = 0     # when to watch the listener again (time.monotonic), if there was no room for another client


def serve(server):
    """Wait for all, then talk to those that are ready."""
    server.setblocking(False)
    rlist.append(server)
    while True:
        rl, wl, xl = wait(rlist, wlist, [], MOMENT if resting else None)    # blocks until a socket is ready
        for sock in rl:
            if sock is server:
                accept(server)
            else:
                read(sock)
        for conn in wl:
            write(conn)
        if resting and time.monotonic() >= resting:
            wake(server)


def accept(server):
    """Take the client that waits."""
    try:
        conn, addr = server.accept()
    except OSError as error:        # any other error is of a client that has gone before we came
        if error.errno in NO_ROOM:
            rest(server, error)
        return
    try:
        select.select(rlist + wlist + [conn], [], [], 0)    # can it be watched at all?
    except ValueError as error:
        refuse(conn, addr, f'select cannot watch it beside the others ({error})')
        return
    conn.setblocking(False)         # on Linux it does not inherit this from the listener
    rlist.append(conn)


def read(conn):
    """CONN has sent something: copy it and answer."""
    try:
        data = conn.recv(BUFSIZE)   # does not wait: select has
    except BlockingIOError:         # a false alarm (select(2), BUGS)
        return
    except OSError:
        data = b''                  # reset, or vanished: that costs this conversation only
    if data:
        send(conn, answer(data))
    else:
        close(conn)


def write(conn):
    """CONN takes bytes again: send the rest of its answer."""
    send(conn, owed[conn])


def send(conn, data):
    """Send as much of DATA as the kernel takes. We owe CONN the rest, and until it is gone we do not read from it."""
    try:
        sent = conn.send(data)
    except BlockingIOError:
        sent = 0
    except OSError:
        close(conn)
        return
    if sent < len(data):
        if conn not in owed:
            rlist.remove(conn)
            wlist.append(conn)
        owed[conn] = data[sent:]
    elif conn in owed:
        del owed[conn]
        wlist.remove(conn)
        rlist.append(conn)


def close(conn):
    """Forget CONN, and give its descriptor back."""
    (wlist if conn in owed else rlist).remove(conn)
    owed.pop(conn, None)
    conn.close()


def rest(server, error):
    """There is no room for another client. The listener stays "ready", so for a moment nobody may watch it."""
    global resting
    say_full(error)
    if rlist + wlist == [server]:   # nobody else is there, and Windows cannot wait for nothing
        time.sleep(MOMENT)
        return
    rlist.remove(server)
    resting = time.monotonic() + MOMENT


def wake(server):
    """Watch the listener again."""
    global resting
    rlist.append(server)
    resting = 0


class TracedSocket(socket.socket):
    """What --trace puts in the place of a socket: it draws each call. Without --trace no line of this runs."""
    number = joined = 0

    def accept(self):
        start = time.perf_counter()
        conn, addr = super().accept()
        conn = TracedSocket(fileno=conn.detach())
        TracedSocket.joined = conn.number = TracedSocket.joined + 1
        draw(conn.number, 'accept', f'took {since(start)}: {name(addr)} joined')
        return conn, addr

    def recv(self, size):
        return self.drawn('recv', size)

    def send(self, data):
        return self.drawn('send', data)

    def drawn(self, call, argument):
        start = time.perf_counter()
        try:
            result = getattr(super(), call)(argument)
        except OSError as error:
            draw(self.number, call, f'took {since(start)}: {error.strerror}')
            raise
        draw(self.number, call, f'copied in {since(start)}: ', result if call == 'recv' else argument[:result])
        return result


def traced_wait(rlist, wlist, xlist, timeout):
    """select.select, drawn: how long it blocked, and how many sockets were ready then."""
    start = time.perf_counter()
    rl, wl, xl = select.select(rlist, wlist, xlist, timeout)
    draw(None, 'select', f'waited {since(start)}, {len(rl) + len(wl)} of {len(rlist) + len(wlist)} sockets ready')
    return rl, wl, xl


wait = select.select        # --trace puts traced_wait here


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
    global answer, Socket, wait
    args = arguments().parse_args()
    answer = slow(args.work) if args.work else answer
    if args.trace:
        Socket, wait = TracedSocket, traced_wait
    run(serve, listen(args.host, args.port), 'multiplexing with select, one thread')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:       # before there was a server, while a name is looked up
        sys.exit(1)

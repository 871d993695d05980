"""Non-blocking I/O (section 2 of the notes).

    process   recv? recv? recv? recv? recv? recv? |-- copied --|  answer
              not   not   not   not   not         |            |
              yet   yet   yet   yet   yet         |            |
    kernel    |------- wait for the data ---------|-- copying -|

recv never waits. If no data has come, it fails at once with EAGAIN: not yet.
Then the process does other work, looks at the other clients, and asks again
(polling). It asks even while nobody speaks, so one processor is always busy.
With --pause it asks less often, and answers late.

Run it:      python nonblocking_server.py --trace
Talk to it:  python client.py --port 8083
Read first:  serve, other_work, accept, read, write, send, close.
             The rest can wait.
"""
import argparse
import os
import signal
import socket
import sys
import threading
import time

PORT = 8083             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
RETRY_DELAY = 0.1       # seconds until the next try after a call has failed
answer = bytes.upper    # makes an answer of a client's bytes; see choose_answer
pause = 0               # seconds to sleep between two rounds of polling; --pause changes it

rlist = []      # clients that we ask for bytes
wlist = []      # clients that have not taken their whole answer: we offer them the rest
unsent = {}     # the rest of the answer for each client in wlist
work_rounds = 0     # how often the loop was free for other work


# ---- the model

def serve(listener):
    """Ask every socket in turn, again and again. No call here blocks."""
    listener.setblocking(False)
    while True:
        while accept(listener):
            pass
        for conn in rlist[:]:
            read(conn)
        for conn in wlist[:]:
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
    except (BlockingIOError, ConnectionError):  # EAGAIN: not yet; or it left before we accepted
        return False
    except OSError as error:
        report_accept_error(error)
        return False
    conn.setblocking(False)         # on Linux it does not inherit this from the listener
    rlist.append(conn)
    return True


def read(conn):
    """If CONN has sent something, copy it and answer."""
    try:
        data = conn.recv(BUFSIZE)   # does not wait
        if data:
            send(conn, answer(data))
            return
    except BlockingIOError:         # EAGAIN: not yet
        return
    except (OSError, MemoryError):  # connection lost, or no memory: only this one ends
        pass
    close(conn)


def write(conn):
    """Offer CONN the rest of its answer."""
    try:
        send(conn, unsent[conn])
    except (OSError, MemoryError):
        close(conn)


def send(conn, data):
    """Send what the kernel takes of DATA. Until the rest is sent, do not read from CONN."""
    try:
        sent = conn.send(data)
    except BlockingIOError:
        sent = 0
    was_waiting = conn in unsent
    if sent < len(data):
        unsent[conn] = data[sent:]
        if not was_waiting:
            rlist.remove(conn)
            wlist.append(conn)
    elif was_waiting:
        del unsent[conn]
        wlist.remove(conn)
        rlist.append(conn)


def close(conn):
    """Forget CONN and give its descriptor back."""
    (wlist if conn in wlist else rlist).remove(conn)
    unsent.pop(conn, None)
    conn.close()


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


def main():
    global answer, pause
    parser = arguments()
    parser.add_argument('--pause', default=0, type=number_between(float, 0, 86400),
                        metavar='SECONDS', help='time to sleep between polling rounds (default 0)')
    args = parser.parse_args()
    answer, pause = choose_answer(args), args.pause
    if args.trace:
        socket.socket = TracedSocket
    model = f'non-blocking, polling every {pause:g} s' if pause else 'non-blocking, polling'
    run(serve, listen(args.host, args.port), model)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket. It counts the calls that fail with "not yet" and
    prints a line for each other call."""
    number = count = 0      # of this connection; of all connections
    asked = 0               # how often we have called since the last success

    def accept(self):
        conn, addr = self.counted_call('accept')
        TracedSocket.count = conn.number = TracedSocket.count + 1
        self.trace_success(conn.number, 'accept', f'{format_address(addr)} joined')
        return conn, addr

    def recv(self, size):
        data = self.counted_call('recv', size)
        self.trace_success(self.number, 'recv', '', data)
        return data

    def send(self, data):
        try:
            sent = self.counted_call('send', data)
        except BlockingIOError:
            if self not in unsent:
                trace(self.number, 'wlist', f'{len(data)} bytes are unsent: not read meanwhile')
            raise
        part = f'{sent} of ' * (sent < len(data))
        self.trace_success(self.number, 'send', part, data)
        if part:
            trace(self.number, 'wlist', f'{len(data) - sent} bytes are unsent: not read meanwhile')
        elif self in unsent:
            trace(self.number, 'rlist', 'all is sent: read again')
        return sent

    def counted_call(self, call, *arguments):
        self.start = time.perf_counter()
        if not self.asked:
            self.first, self.rounds = self.start, work_rounds
        self.asked += 1
        try:
            return getattr(super(), call)(*arguments)
        except BlockingIOError:
            raise
        except OSError as error:
            self.asked = 0
            trace(self.number, call, f'took {elapsed(self.start)}: {error.strerror}')
            raise

    def trace_success(self, number, call, words, data=None):
        took = elapsed(self.start)
        if self.asked > 1:
            count = f'asked {self.asked} times in {elapsed(self.first)}'
            trace(number, call, f'{count}, {self.asked - 1} times "not yet"')
            trace(None, 'work', f'other work done {work_rounds - self.rounds} times meanwhile')
        trace(number, call, f'copied in {took}: {words}', data)
        self.asked = 0


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

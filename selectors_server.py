"""I/O multiplexing with selectors and callbacks (section 3 of the notes).

    process   |--- blocked in select: waited ---|  recv |-- copied --|  answer
    kernel    |---- wait for anyone's data -----|       |-- copying -|

One call waits for all sockets. Then recv only copies. Blocking I/O needs one
call for a read, and this needs two: one client is not served faster. But one
thread serves many clients.

A client that does not take its answer is not read from until it has taken it.
The selector stores a callback with each socket. epoll and kqueue know who is
ready; select and poll look through all sockets at each call. Every recv adds
--suffix to its answer: count the suffixes, and you count the reads.

Run it:      python selectors_server.py --trace
Talk to it:  python client.py --port 8088
Read first:  serve, accept, read, write, send, close. The rest can wait.
"""
import argparse
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time

PORT = 8088             # the notes' own
BUFSIZE = 32768         # bytes that one recv takes at most
RETRY_DELAY = 0.1       # seconds until the next try after a call has failed
answer = bytes.upper    # makes an answer of a client's bytes; see choose_answer

try:
    sel = selectors.DefaultSelector()   # --selector puts another one here
except OSError as error:
    sys.exit(f'cannot make a selector: {error.strerror}')
suffix = b'_SB'  # what each recv adds to its answer; --suffix changes it
unsent = {}     # the rest of the answer for each client that has not taken it all
resume_at = 0   # when to watch the listener again (time.monotonic); 0: it is watched


# ---- the model

def serve(listener):
    """Wait for all sockets, then serve those that are ready."""
    listener.setblocking(False)
    if not resume_at and listener not in sel.get_map():     # keep_serving may call this again
        sel.register(listener, selectors.EVENT_READ, accept)
    while True:
        if resume_at:
            resume_accepting(listener)
        timeout = RETRY_DELAY if resume_at else None
        for key, mask in sel.select(timeout):       # blocks until one is ready
            key.data(key.fileobj, mask)             # accept, read or write


def accept(listener, mask):
    """Take the client that waits."""
    try:
        conn, addr = listener.accept()
    except OSError as error:
        pause_accepting(listener, error)
        return
    conn.setblocking(False)         # on Linux it does not inherit this from the listener
    try:        # ask select first: a socket that it cannot watch would end the loop
        if isinstance(sel, selectors.SelectSelector):
            select.select([*sel.get_map(), conn], [], [], 0)
        sel.register(conn, selectors.EVENT_READ, read)
    except (ValueError, OSError) as error:      # its number is too high, or no memory
        refuse(conn, addr, f'we cannot watch it beside the others ({error})')
        return


def read(conn, mask):
    """CONN has sent something: copy it and answer."""
    try:
        data = conn.recv(BUFSIZE)   # does not wait: select has waited
        if data:
            send(conn, answer(data) + suffix)
            return
    except BlockingIOError:         # a false alarm (select(2), BUGS)
        return
    except (OSError, MemoryError):  # connection lost, or no memory: only this one ends
        pass
    close(conn)


def write(conn, mask):
    """CONN takes bytes again: send the rest of its answer."""
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
            sel.modify(conn, selectors.EVENT_WRITE, write)
    elif was_waiting:
        del unsent[conn]
        sel.modify(conn, selectors.EVENT_READ, read)


def close(conn):
    """Forget CONN and give its descriptor back."""
    if conn in sel.get_map():       # not if `modify` has failed
        sel.unregister(conn)
    unsent.pop(conn, None)
    conn.close()


# ---- out of descriptors

def pause_accepting(listener, error):
    """Stop watching the listener briefly, or select would return at once, again and again."""
    global resume_at
    if isinstance(error, (ConnectionError, BlockingIOError)):   # it left before we accepted it
        return
    report_accept_error(error)
    sel.unregister(listener)
    resume_at = time.monotonic() + RETRY_DELAY


def resume_accepting(listener):
    """Watch the listener again when it is time."""
    global resume_at
    if not sel.get_map():       # nobody is connected, and Windows cannot wait for nothing
        time.sleep(RETRY_DELAY)
    elif time.monotonic() < resume_at:
        return
    sel.register(listener, selectors.EVENT_READ, accept)
    resume_at = 0


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
    global answer, sel, suffix
    parser = arguments()
    kinds = ['default', 'epoll', 'kqueue', 'devpoll', 'poll', 'select']
    parser.add_argument('--selector', default='default', choices=kinds, metavar='KIND',
                        help=', '.join(kinds))
    parser.add_argument('--suffix', default='_SB', help='added by each recv (default %(default)s)')
    args = parser.parse_args()
    answer = choose_answer(args)
    suffix = os.fsencode(args.suffix)
    selector = f'{args.selector.title()}Selector'
    if not hasattr(selectors, selector):
        sys.exit(f'this platform has no {args.selector}; take --selector default')
    sel = getattr(selectors, selector)()
    if args.trace:
        socket.socket, sel.select = TracedSocket, traced_select
    model = f'multiplexing with selectors, {type(sel).__name__[:-8].lower()}, one thread'
    run(serve, listen(args.host, args.port), model)


# ---- --trace

class TracedSocket(socket.socket):
    """With --trace, replaces socket.socket and prints a line per call."""
    number = count = 0      # of this connection; of all connections

    def accept(self):
        start = time.perf_counter()
        conn, addr = super().accept()
        TracedSocket.count = conn.number = TracedSocket.count + 1
        trace(conn.number, 'accept', f'took {elapsed(start)}: {format_address(addr)} joined')
        return conn, addr

    def recv(self, size):
        start = time.perf_counter()
        data = self.traced_call('recv', size)
        trace(self.number, 'recv', f'copied in {elapsed(start)}: ', data)
        return data

    def send(self, data):
        start = time.perf_counter()
        try:
            sent = self.traced_call('send', data)
        except BlockingIOError:
            trace(self.number, 'watch', f'for writing: {len(data)} bytes are unsent')
            raise
        part = f'{sent} of ' * (sent < len(data))
        trace(self.number, 'send', f'copied in {elapsed(start)}: {part}', data)
        if part:
            trace(self.number, 'watch', f'for writing: {len(data) - sent} bytes are unsent')
        elif self in unsent:
            trace(self.number, 'watch', 'for reading again: all is sent')
        return sent

    def traced_call(self, call, argument):
        start = time.perf_counter()
        try:
            return getattr(super(), call)(argument)
        except OSError as error:
            trace(self.number, call, f'took {elapsed(start)}: {error.strerror}')
            raise


def trace_ready(start, rl, wl, count):
    """Print how long the wait was, and which of COUNT sockets are ready for what."""
    ready = [f'read #{sock.number}' if sock.number else 'read listener' for sock in rl]
    ready += [f'write #{sock.number}' for sock in wl]
    words = f'waited {elapsed(start)}, {len(ready)} of {count} ready: '
    trace(None, 'select', words + ', '.join(ready))


def traced_select(*arguments):
    """The model's wait, with a line of trace."""
    start = time.perf_counter()
    events = type(sel).select(sel, *arguments)
    rl = [key.fileobj for key, mask in events if mask & selectors.EVENT_READ]
    wl = [key.fileobj for key, mask in events if mask & selectors.EVENT_WRITE]
    trace_ready(start, rl, wl, len(sel.get_map()))
    return events


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

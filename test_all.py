"""Proves every server on this machine: python -m unittest (-v; -k stalled; test_all.SelectTest).

One table of tests, `Contract`, runs against every server and mode of the folder. The rest is about
one model, faults, random clients, the trace, the client and the README. `MutationTest` runs the
same table against servers that are wrong on purpose; each must be caught.

No test sleeps when it can wait for an event. Times have a wide margin, since machines are shared.
"""
import ast
import concurrent.futures
import contextlib
import errno
import faulthandler
import functools
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import timeit
import unittest
import unittest.mock
import xml.dom.minidom

import client
from client import FOLDER, LINGER_ZERO, Server

Server.python = PYTHON = [sys.executable, '-S']     # no site-packages: no script needs one
POSIX = os.name == 'posix'
LINUX = sys.platform.startswith('linux')
CPYTHON = sys.implementation.name == 'cpython'
TIMEOUT = 20        # seconds until a test takes "not yet" for "never"
UTF_8 = {**os.environ, 'PYTHONIOENCODING': 'utf-8'}
SERVERS = ['blocking_server.py', 'nonblocking_server.py', 'select_server.py', 'selectors_server.py',
           'async_server.py', 'socketserver_server.py']
SCRIPTS = SERVERS + ['client.py', 'test_all.py']
SPAN = r'([\d.]+) (us|ms|s)'        # a duration in the words of the trace


# ---- if the run is stopped, no server is left

started = []        # processes other than servers that tests have started


def setUpModule():
    for number, handler in client.handle_signals(end_run).items():
        unittest.addModuleCleanup(signal.signal, number, handler)
    for number in signal.SIGINT, getattr(signal, 'SIGHUP', signal.SIGINT):
        if signal.getsignal(number) == signal.SIG_IGN:      # in the background of a script, nohup
            signal.signal(number, lambda number, frame: None)       # or what we start ignores it
    client.raise_file_limit()
    client.prepare()        # SIGCHLD may be ignored


def end_run(number, frame):
    """End what we have started, and then ourselves by the same signal."""
    for process in started:
        process.terminate()
    for server in list(Server.running):
        server.stop()
    for process in started:
        process.wait(TIMEOUT)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


# ---- helpers

def receive(sock, count):
    """Return COUNT bytes, or fewer if the other side ends before."""
    data = bytearray()
    while len(data) < count:
        received = sock.recv(count - len(data))
        if not received:
            break
        data += received
    return bytes(data)


def receive_all(sock):
    return b''.join(iter(lambda: sock.recv(65536), b''))


def ask(sock, data=b'hello'):
    sock.sendall(data)
    return receive(sock, len(data))


def reset(sock):
    """Close SOCK so that the other side gets a reset, not an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    sock.close()


def random_bytes(count):
    return random.Random(count).getrandbits(8 * count + 8).to_bytes(count + 1, 'little')[1:]


@contextlib.contextmanager
def sending(sock, pieces, half_close=True):
    """In a `with` block of this a thread sends PIECES, and half-closes at the end."""
    def send():
        with contextlib.suppress(OSError):
            for piece in pieces:
                sock.sendall(piece)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)     # wakes the thread if it still sends
        sender.join()


def send_until_blocked(sock, quiet=0.1, most=200 << 20):
    """Send until nothing has gone for QUIET seconds, and read nothing; return what was sent."""
    timeout, sent, chunk = sock.gettimeout(), bytearray(), random_bytes(65536)
    sock.settimeout(quiet)
    with contextlib.suppress(socket.timeout):
        while len(sent) < most:
            sent += chunk[:sock.send(chunk)]
    sock.settimeout(timeout)
    return bytes(sent)


def wait_until(condition, timeout=TIMEOUT):
    """Wait for what has no event of its own, such as another process's descriptors."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def all_ended(pids):
    """Wait until all have ended. (A zombie has: only its parent has not reaped it.)"""
    def runs(pid):
        with contextlib.suppress(OSError):
            return client.proc_stat(pid)[0] != 'Z'
    return wait_until(lambda: not any(map(runs, pids)))


def children(pid):
    parents = client.each_process(lambda each: int(client.proc_stat(each)[1]))
    return [each for each in parents if parents[each] == pid]


def count_descriptors(pid):
    return len(os.listdir(f'/proc/{pid}/fd'))


def start_process(case, *command, **options):
    """Start a command of ours in the folder; it is killed in the end."""
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    process = subprocess.Popen(command, **{'cwd': FOLDER, **pipes, **options})
    started.append(process)
    case.addCleanup(process.__exit__, None, None, None)     # this closes its pipes
    case.addCleanup(process.kill)
    return process


def run(*command, **options):
    """Run a script of the folder to its end; return it with what it printed as bytes."""
    options = {'stdin': None if 'input' in options else subprocess.DEVNULL, 'timeout': 60,
               'env': {**UTF_8, 'NO_COLOR': '1', 'PYTHON_COLORS': '0'}, 'cwd': FOLDER, **options}
    return subprocess.run([*PYTHON, *command], capture_output=True, **options)


def text_of(row):
    return ''.join(words for kind, words in row)


def read_source(script):
    with open(os.path.join(FOLDER, script), encoding='utf-8') as file:
        return file.read()


def with_shell(command):
    """Return the option with which a server is started by a line of shell, `exec "$@"` in it."""
    return {'before': ['sh', '-c', command, 'sh']}


def refused_io_uring():
    """Return why there is no io_uring, or None. (A broken script would skip its own tests.)"""
    if not LINUX or not CPYTHON:
        return 'io_uring needs Linux and CPython'
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype, params = ctypes.c_long, (ctypes.c_uint32 * 30)()
    params[2] = 1 << 12 | 1 << 8        # SINGLE_ISSUER, COOP_TASKRUN
    fd = libc.syscall(ctypes.c_long(425), ctypes.c_long(8), ctypes.byref(params))
    if fd < 0:
        return f'no io_uring here: {os.strerror(ctypes.get_errno())}'
    os.close(fd)
    return None


def patched_copy(case, script, *replacements, before=''):
    """Return the path of a copy of SCRIPT, each (old, new) replaced, after the code BEFORE."""
    source = read_source(script)
    for old, new in replacements:
        if old not in source:
            raise AssertionError(f'{script} has no {old!r}')
        source = source.replace(old, new)
    folder = tempfile.TemporaryDirectory()
    (case.addClassCleanup if isinstance(case, type) else case.addCleanup)(folder.cleanup)
    path = os.path.join(folder.name, os.path.basename(script))
    with open(path, 'w', encoding='utf-8') as file:
        file.write(textwrap.dedent(before) + '\n' + source)
    return path


def crowded_copy(case, script, last):
    """Return the path of a copy of SCRIPT that begins with open files, the last of this number."""
    if client.raise_file_limit() < last + 20:
        case.skipTest(f'fewer than {last + 20} open files are allowed')
    opening = f'import os\nwhile os.open(os.devnull, os.O_RDONLY) < {last}:\n    pass'
    return patched_copy(case, script, before=opening)


class ServerTest(unittest.TestCase):
    """Base of all tests with servers: it starts them and connects, and cleans up."""
    timeout = TIMEOUT
    idle_seconds = 0.07     # how long to watch for spinning

    def setUp(self):
        watchdog = threading.Timer(30 * TIMEOUT, self.end_a_hang)
        watchdog.start()
        self.addCleanup(watchdog.cancel)

    def end_a_hang(self):
        """Say which test seems to hang, and where; and kill the processes that it may wait for."""
        print(f'\n{self.id()} seems to hang:', file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(sys.__stderr__)
        for process in started:
            process.kill()

    def start_server(self, script, *arguments, **options):
        server = Server(script, *arguments, **options)
        self.addCleanup(server.stop)
        return server

    def connect(self, server):
        sock = socket.create_connection(server.address, self.timeout)
        self.addCleanup(sock.close)
        return sock

    def assert_serves(self, server):
        with self.connect(server) as sock:
            self.assertEqual(ask(sock, b'still there?'), b'STILL THERE?', server.name)

    def assert_said(self, server, pattern):
        """The server has said so, before or after `listening`, or it does now."""
        if not any(re.search(pattern, line) for line in server.seen()):
            server.expect(pattern, self.timeout)

    def assert_waits(self, sock):
        sock.settimeout(0.2)
        with self.assertRaises(socket.timeout):
            sock.recv(1)
        sock.settimeout(TIMEOUT)

    def assert_idle(self, server):
        """The server rests, or will soon. (Polling does not; elsewhere we cannot tell.)"""
        polls = 'nonblocking' in server.name and '--pause' not in server.name
        if client.HAS_PROC and not polls:
            self.assertTrue(any(self.rests(server) for _ in range(4)), f'{server.name} spins')

    def rests(self, server):
        """Whether it uses less than half of the CPU that other programs leave to it."""
        def look():
            waited = client.seconds_waited(server.pid)
            return client.cpu_seconds(server.pid), time.monotonic() - waited
        used, left = look()
        time.sleep(self.idle_seconds)
        return look()[0] - used < 0.5 * (look()[1] - left)

    def do_each(self, test, rows, threads=3):
        """Do TEST(*row) for each row, some at a time: they wait more than they compute."""
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(test, *row) for row in rows]
        for row, future in zip(rows, futures):
            with self.subTest(row=row):
                future.result()

    def undisturbed(self, attempt):
        """Do ATTEMPT until it succeeds. Undisturbed failures count; without /proc five do."""
        for _ in range(5):
            watch = client.Disturbance()
            try:
                return attempt()
            except (self.failureException, RuntimeError) as error:     # a client was held up
                failure = error
                if client.HAS_PROC and not watch.stop().disturbed:
                    raise
        if not client.HAS_PROC:
            raise failure
        return self.skipTest(f'other programs disturb us: {str(failure).splitlines()[0]}')

    def open_terminal(self):
        """Return the two sides of a new pseudo-terminal, first ours."""
        if not POSIX:
            self.skipTest('needs a pseudo-terminal')
        import pty
        sides = pty.openpty()
        for side in sides:
            self.addCleanup(os.close, side)
        return sides

    def screen(self, master, until):
        """Read a terminal until it shows UNTIL; return what it has shown."""
        shown = b''
        while until not in shown:
            self.assertTrue(select.select([master], [], [], TIMEOUT)[0], shown)
            shown += os.read(master, 1000)
        return shown

    def assert_silent(self, server):
        """Stop the server; it has nothing more to say. (Windows has no `kill` without words.)"""
        server.stop()
        self.assertEqual(server.log[server.passed:], [], server.name)


no_fork = None if hasattr(os, 'fork') else 'this platform has no os.fork'
no_io_uring = refused_io_uring()


def missing(arguments):
    """Return what this platform lacks for these arguments of a server, or None."""
    lacks = {kind: None if hasattr(select, kind) else f'this platform has no {kind}'
             for kind in ('epoll', 'kqueue', 'poll')}
    return {'process': no_fork, 'io_uring': no_io_uring, **lacks}.get(' '.join(arguments[-1:]))


# ---- faults: code that runs before a server

# PLAN has rows [call, error, calls that succeed before, how often it fails]; of the rows for one
# call only the first that is not finished counts. An error of 0 is MemoryError.
FAULTS = '''
import errno, mmap, os, select, selectors, socket, threading

PLAN, counting, real_select = {plan!r}, threading.Lock(), select.select
counts = memoryview(mmap.mmap(-1, 4096)).cast('Q')      # of each row: shared with child processes

def fault(call, sock=None):
    with counting:
        for index, (name, error, before, times) in enumerate(PLAN):
            if name == call and counts[index] < before + times:
                counts[index] += 1
                if counts[index] <= before:
                    return
                if call == 'accept' and error == errno.EAGAIN and sock.gettimeout() is None:
                    threading.Event().wait()        # only what does not block says "not yet"
                if times < 99:
                    os.write(2, f'fault: {{call}} {{errno.errorcode.get(error)}}\\n'.encode())
                if call == 'thread':
                    raise RuntimeError("can't start new thread")
                raise OSError(error, os.strerror(error)) if error else MemoryError()

def faulty(call, function, counts=lambda *arguments: True):
    def wrapped(*arguments, **options):
        if counts(*arguments):
            fault(call, *arguments[:1])
        return function(*arguments, **options)
    return wrapped

def is_tcp(sock, *arguments):
    return sock.family != socket.AF_UNIX
def has_come(sock, *arguments):     # a call that only asks whether there is something is none
    if is_tcp(sock) and sock.gettimeout() is not None and not real_select([sock], [], [], 0)[0]:
        raise BlockingIOError(errno.EAGAIN, 'not yet')
    return is_tcp(sock)
def is_client(sel, sock, *arguments):       # a server may end if it cannot watch its listener
    return isinstance(sock, int) or hasattr(sock, 'getsockopt') and not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
def select_as_on_windows(rlist, wlist, xlist, timeout=None):
    if not rlist and not wlist:
        raise OSError(errno.EINVAL, 'nothing to wait for')
    return real_select(rlist, wlist, xlist, timeout)

methods = dict(accept=has_come, recv=has_come, send=is_tcp, sendall=is_tcp, setsockopt=is_tcp,
               getpeername=is_tcp, getsockname=is_tcp)
socket.socket = type('FaultySocket', (socket.socket,), {{
    call: faulty(call, getattr(socket.socket, call), counts) for call, counts in methods.items()}})
real_register = selectors._PollLikeSelector.register
selectors._PollLikeSelector.register = faulty('register', real_register, is_client)
threading.Thread.start = faulty('thread', threading.Thread.start)
os.fork = faulty('fork', os.fork)
select.select = select_as_on_windows
selectors.SelectSelector._select = staticmethod(select_as_on_windows)
'''
# The same for io_uring: a coroutine may fail, or a completion may say so.
RING_FAULTS = '''
def completions(self, real_completions=IoUringLoop.completions):
    for task, res, flags in real_completions(self):
        try:
            fault('completion')
        except OSError as error:
            if task == 1 and res >= 0:
                os.close(res)       # an accepted connection
            res = -error.errno
        yield task, res, flags

def with_faults(self, real_init=IoUringLoop.__init__):
    real_init(self)
    self.queue, self.tasks, self.to_return = FaultyList(), FaultyDict(), FaultyList(self.to_return)

FaultyList = type('FaultyList', (list,), {'append': faulty('append', list.append)})
FaultyDict = type('FaultyDict', (dict,), {'__setitem__': faulty('task', dict.__setitem__)})
IoUringLoop.__init__ = with_faults
IoUringLoop.sock_accept = faulty('accept', IoUringLoop.sock_accept)
IoUringLoop.completions = completions
import asyncio
asyncio.BaseEventLoop.create_task = faulty('task', asyncio.BaseEventLoop.create_task)
'''


def faulty_copy(case, script, *plan):
    """Return the path of a copy of SCRIPT in which calls fail as PLAN says (see FAULTS)."""
    main = "if __name__ == '__main__':\n"
    more = [(main, RING_FAULTS + main)] if 'async_server' in script else []
    return patched_copy(case, script, *more, before=FAULTS.format(plan=plan))


# ---- the contract

class Contract:
    """What every server must do, under use and abuse alike; CONTRACTS says which there are."""
    script, arguments, patch = '', (), None
    parallel = True         # a client that only sits there keeps nobody waiting
    loop = False            # one thread for all: an answer that computes keeps everybody waiting
    waits = False           # an answer that waits does so too
    forks = False           # each client has a process of its own
    quiet = 0.05            # seconds after which a connection that takes nothing more is blocked
    crowd_seconds = TIMEOUT if CPYTHON else 60      # how long 500 clients may wait
    silent_kib = 40 if client.HAS_GIL else 160      # a silent client's (its thread's heap: no GIL)

    @classmethod
    def setUpClass(cls):
        if cls.patch:
            cls.script = patched_copy(cls, cls.script, cls.patch)
        cls.server = Server(cls.script, *cls.arguments)
        cls.addClassCleanup(cls.server.stop)

    def start_own(self, *arguments, **options):
        return self.start_server(self.script, *self.arguments, *arguments, **options)

    def start_faulty(self, *plan):
        return self.start_server(faulty_copy(self, self.script, *plan), *self.arguments)

    def test_answers(self):
        """No newline is waited for: the notes' own clients send none, and read once."""
        sock = self.connect(self.server)
        line = r'^listening on 127\.0\.0\.1:\d+ \([ -~]{,51}; Ctrl-C stops\)$'
        self.assert_said(self.server, line)
        every = bytes(range(256)) + 'gro\xdf, \u5927\u5199 and \u0131'.encode()
        for message in b'hello', b'a', b'\0', b'GET / HTTP/1.0\r\n\r\n', every:
            sock.sendall(message)
            self.assertEqual(sock.recv(1024), message.upper())

    def test_resets(self):
        """With an answer under way or without, it costs only that connection, without a word."""
        server = self.start_own()
        for message in 2 * [b'', b'x', b'x' * 300000] + [None]:     # a reset may arrive late: twice
            with self.connect(server) as sock:
                if message is None:
                    send_until_blocked(sock, self.quiet)
                sock.setblocking(False)
                sock.send(message or b'')
                reset(sock)
            self.assert_serves(server)
        self.assert_idle(server)
        self.assert_silent(server)

    def test_stalled_reader(self):
        """One that does not read is throttled. When it reads at last it gets every byte."""
        server = self.start_own('--trace')
        self.assert_serves(server)
        before = client.memory_bytes(server.pid) if LINUX else 0
        sock = self.connect(server)
        sent = send_until_blocked(sock, self.quiet)
        if LINUX and CPYTHON:       # PyPy collects when it likes
            grown = client.memory_bytes(server.pid) - before
            self.assertLess(grown, 16 << 20, 'it stores what is not read')
        if self.parallel:
            self.assert_serves(server)
        self.assert_idle(server)
        with sending(sock, [b'the end']):
            received = receive_all(sock)
        self.assertTrue(received == sent.upper() + b'THE END', f'{len(received)} of {len(sent)}')
        if self.waits:
            server.expect('#2 +send +asked' if 'non' in self.script else 'ready: .*write #2')

    def test_500_at_once(self):
        """500 connect and speak before the server looks; a loop reads before it has taken 100."""
        server = self.start_own('--trace') if self.loop else self.server
        crowd = [socket.socket() for _ in range(min(500, client.raise_file_limit() - 60))]
        if POSIX:
            server.process.send_signal(signal.SIGSTOP)
        for sock in crowd:
            self.addCleanup(reset, sock)
            sock.setblocking(False)
            sock.connect_ex(server.address)
        for each, sock in enumerate(crowd):
            if POSIX and each == 100:       # the queue for accept takes as many everywhere
                server.process.send_signal(signal.SIGCONT)
            sock.settimeout(self.crowd_seconds)
            sock.sendall(b'client %d' % each)
            if not self.parallel:       # one must leave before the next is served
                sock.shutdown(socket.SHUT_WR)
        for each, sock in enumerate(crowd):
            self.assertEqual(sock.recv(100), b'CLIENT %d' % each)
        if POSIX and self.loop:
            server.expect("recv .*b'client ")
            accepted = len(re.findall(r'#\d+ +accept ', '\n'.join(server.seen())))
            self.assertIn(accepted, range(64 if 'non' in self.script else 1, 100))

    def test_flood(self):
        """Beside a client that sends without end an older one waits less than 1 s."""
        server = self.start_own('--work', '0.001')
        sock, flood = self.connect(server), self.connect(server)
        sock.settimeout(1)
        end = time.monotonic() + 0.3
        endless = iter(lambda: bytes(32768), None)
        with concurrent.futures.ThreadPoolExecutor() as pool, sending(flood, endless):
            pool.submit(receive_all, flood)
            while time.monotonic() < end:
                self.assertEqual(ask(sock), b'HELLO')

    @unittest.skipUnless(LINUX and CPYTHON, 'reads /proc; PyPy collects when it likes')
    def test_a_silent_client_keeps_no_message(self):
        """Its last message has been answered, so nobody needs it."""
        server, message = self.start_own(), bytes(32000)
        first = self.connect(server)
        for _ in range(100):        # with io_uring, through all buffers
            self.assertEqual(ask(first, message), message)
        before = client.memory_bytes(server.pid)
        for _ in range(100):
            self.assertEqual(ask(self.connect(server), message), message)
        grown = client.memory_bytes(server.pid) - before
        self.assertLess(grown / 100, self.silent_kib << 10)

    @unittest.skipUnless(POSIX, 'Windows has no limit of open files')
    def test_out_of_descriptors(self):
        """Others keep half their rate; one line; no spinning; a free place is taken at once."""
        server = self.start_own(**with_shell('ulimit -n 40; exec "$@"'))
        socks = [self.connect(server) for _ in range(60)]
        server.expect(r'^cannot accept \(Too many open files\): new clients wait; '
                      'others are served$', self.timeout)
        self.assert_idle(server)
        self.assertEqual(ask(socks[0]), b'HELLO')
        if self.loop:
            others = [self.connect(self.server) for _ in socks]     # polling asks each of them
            self.undisturbed(lambda: self.assertLess(
                self.answers_take(socks[0]), 2 * self.answers_take(others[0])))
        for sock in socks[:-1]:
            sock.close()
        self.assertEqual(ask(socks[-1]), b'HELLO')
        self.assert_serves(server)
        self.assert_silent(server)      # it does not say so again

    @unittest.skipUnless(POSIX, 'there the errors have other numbers')
    def test_accept_fails(self):
        """It says so, once for each reason, and tries again. Others are served, nothing spins."""
        server = self.start_faulty(['accept', errno.EMFILE, 0, 1], ['accept', 0, 0, 1],
                                   ['accept', errno.EPERM, 1, 1 << 60])
        first = self.connect(server)
        self.assertEqual(ask(first), b'HELLO')
        self.connect(server)
        if not self.parallel and 'pool' not in self.arguments:
            first.close()
        for reason in 'Too many open files', 'out of memory', 'Operation not permitted':
            server.expect(rf'^cannot accept \({reason}\)', self.timeout)
        self.assert_idle(server)
        if self.parallel:
            self.assertEqual(ask(first), b'HELLO')
        first.close()
        self.assert_idle(server)
        self.assert_silent(server)

    def answers_take(self, sock):
        """Return the shortest time of four in which SOCK gets five answers."""
        return min(timeit.repeat(lambda: self.assertEqual(ask(sock), b'HELLO'), repeat=4, number=5))

    @unittest.skipUnless(POSIX, 'there the errors have other numbers')
    def test_not_yet(self):
        """A call may fail with EAGAIN though select has said "ready" (select(2), BUGS)."""
        if not self.loop or 'io_uring' in self.arguments:
            self.skipTest('this model has no non-blocking calls')
        server = self.start_faulty(*([call, errno.EAGAIN, before, 1] for before in (0, 2)
                                     for call in ('accept', 'recv', 'send')))
        first, second = self.connect(server), self.connect(server)
        for _ in range(3):
            self.assertEqual(ask(first) + ask(second), b'HELLOHELLO')

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_no_leaks(self):
        """After many have come and gone no descriptor, thread or process is left of them."""
        pid = self.server.pid

        def counts():
            threads = client.total(pid, lambda each: len(os.listdir(f'/proc/{each}/task')))
            return [count_descriptors(pid), threads, len(children(pid))]

        def none_is_left():
            return all(count <= most for count, most in zip(counts(), allowed))
        self.assert_serves(self.server)
        wait_until(lambda: not children(pid), 1)
        allowed = counts()
        for number in range(60):
            with self.connect(self.server) as sock:
                self.assertEqual(ask(sock) if number % 3 else b'HELLO', b'HELLO')
                if number % 3 == 1:
                    sock.sendall(b'x')
        if not wait_until(none_is_left, self.timeout / 6):
            self.assert_serves(self.server)     # a signal just before accept is noticed after it
        self.assertTrue(wait_until(none_is_left, self.timeout), f'more than {allowed}')

    def test_stop_signals(self):
        """They end server and children at once, without a word. The port is free."""
        names = ['SIGINT', 'SIGTERM'] if POSIX else 2 * ['CTRL_BREAK_EVENT']
        options = {} if POSIX else {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP}
        port = 0
        for name, slow in zip(names, ['--work', '--delay']):
            server = self.start_own(slow, '20', '--port', str(port), **options)
            port, number = server.address[1], getattr(signal, name)
            held = count_descriptors(server.pid) if LINUX else 0
            for message in b'', b'compute', b'x' * 10000:
                self.connect(server).sendall(message)
            if LINUX:       # a connection that was not accepted would not keep the port
                wait_until(lambda: len(children(server.pid)) == 3 if self.forks else
                           count_descriptors(server.pid) > held)
            pids = [server.pid, *children(server.pid)] if LINUX else []
            try:        # as at a terminal: to the whole group
                os.killpg(server.pid, number) if POSIX else server.process.send_signal(number)
            except OSError as error:
                self.skipTest(f'no Ctrl-Break can be sent here: {error}')
            status = server.process.wait(self.timeout / 4)
            self.assertEqual(status, -number if POSIX else status)
            self.assertTrue(all_ended(pids))
            self.assert_silent(server)

    def test_slow_answers(self):
        """They hold up everybody in a loop, and nobody if they are awaited or have a thread."""
        for slow, holds_up in ('--delay', self.waits), ('--work', self.loop):
            if slow == '--delay' or holds_up:
                server = self.start_own('--trace', slow, '0.03' if holds_up else '20')
                for _ in range(3):
                    self.connect(server).sendall(b'hello')
                for _ in range(3):
                    server.expect("recv +.*5 bytes b'hello'")
                done = re.findall(r"answer +[ac-w]+ed |send.*b'HELLO'", '\n'.join(server.seen()))
                self.assertEqual(len(done), 4 if holds_up else 0, server.seen())

    def test_one_client_too_many(self):
        """Section 1: the problem of a serial server, and the limit of a pool."""
        if self.parallel:
            self.skipTest('here nobody waits for another')
        number = 3 if 'pool' in self.arguments else 1
        served = [self.connect(self.server) for _ in range(number)]
        for sock in served:
            self.assertEqual(ask(sock), b'HELLO')
        last = self.connect(self.server)
        last.sendall(b'me?')
        self.assert_waits(last)
        served[number // 2].close()
        self.assertEqual(receive(last, 3), b'ME?')


# a ring so small that every queue overflows, and that every buffer is in use all the time
TINY_RING = ('SQ_ENTRIES, CQ_ENTRIES, BUFFERS = 1024, 4096, 1024',
             'SQ_ENTRIES, CQ_ENTRIES, BUFFERS = 4, 8, 2')
# what a variant that differs from another in one call need not prove again
SHARED = dict.fromkeys(['test_500_at_once', 'test_flood', 'test_out_of_descriptors', 'test_resets',
                        'test_slow_answers', 'test_stalled_reader', 'test_stop_signals'])
# what does not concern a process that has only one or a few clients
FEW = dict.fromkeys(['test_out_of_descriptors', 'test_a_silent_client_keeps_no_message'])
FORKS = {'forks': True, **FEW}
POOL = {'parallel': False, 'test_flood': None, **FEW}
SERIAL = {**POOL, 'test_slow_answers': None}
ASYNC = {'loop': True, 'silent_kib': 8}
LOOP = {'loop': True, 'waits': True, 'silent_kib': 4}
LIKE_IT = {**LOOP, **SHARED}
CONTRACTS = [       # name, server, calls beside accept that may fail, what it allows
    ('BlockingSerialTest', 'blocking --mode serial', 'recv sendall', SERIAL),
    ('BlockingThreadTest', 'blocking', 'recv sendall thread', {}),
    ('BlockingProcessTest', 'blocking --mode process', 'recv sendall fork', FORKS),
    ('BlockingPoolTest', 'blocking --mode pool --pool-size 3', 'recv sendall', POOL),
    ('NonblockingTest', 'nonblocking --pause 0.001', 'recv send', LOOP),
    ('NonblockingPollingTest', 'nonblocking', 'recv send', LIKE_IT),
    ('SelectTest', 'select', 'recv send', LOOP),
    ('SelectorsEpollTest', 'selectors --suffix= --selector epoll', 'recv send register', LOOP),
    ('SelectorsKqueueTest', 'selectors --suffix= --selector kqueue', 'recv send', LOOP),
    ('SelectorsPollTest', 'selectors --suffix= --selector poll', 'recv send register', LIKE_IT),
    ('SelectorsSelectTest', 'selectors --suffix= --selector select', 'recv send', LIKE_IT),
    ('AsyncAsyncioTest', 'async --engine asyncio', 'recv send register', ASYNC),
    ('AsyncIoUringTest', 'async --engine io_uring', 'getpeername completion', ASYNC),
    ('AsyncTinyRingTest', 'async --engine io_uring', '', {**ASYNC, 'patch': TINY_RING}),
    ('SocketserverSerialTest', 'socketserver --mode serial', 'recv sendall', {**SERIAL, **SHARED}),
    ('SocketserverThreadTest', 'socketserver', 'recv sendall thread', {}),
    ('SocketserverProcessTest', 'socketserver --mode process', 'recv sendall fork', FORKS)]
VARIANTS = {}       # every way to run a server that this platform has, for tests of other kinds
for name, command, calls, traits in CONTRACTS:
    model, *arguments = command.split()
    script = f'{model}_server.py'
    reason = missing(arguments)
    if not reason:
        VARIANTS.setdefault((script, *arguments), calls)
    traits = {'script': script, 'arguments': arguments, **traits}
    globals()[name] = unittest.skipIf(reason, reason)(type(name, (Contract, ServerTest), traits))
EACH = [[script] for script in SERVERS] + [['async_server.py', '--engine', 'asyncio']]
PARALLEL = [command for command in VARIANTS if not {'serial', 'pool'} & set(command)]


# ---- what is particular to each model

class BlockingModelTest(ServerTest):
    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_a_process_each(self):
        """One that stands still holds up nobody. After SIGTERM to the parent a client is served."""
        for script in 'blocking_server.py', 'socketserver_server.py':
            server = self.start_server(script, '--mode', 'process', '--work', '0.1')
            frozen = self.connect(server)
            wait_until(lambda: children(server.pid))
            child = children(server.pid)[0]
            os.kill(child, signal.SIGSTOP)
            frozen.sendall(b'hello')
            self.assert_serves(server)
            os.kill(child, signal.SIGCONT)
            self.assertEqual(receive(frozen, 5), b'HELLO')
            frozen.close()
            self.assertTrue(all_ended([child]))
            self.assert_serves(server)
            self.assertGreater(client.cpu_seconds(server.pid), 0.2)
            sock = self.connect(server)
            self.assertEqual(ask(sock), b'HELLO')
            server.process.terminate()
            self.assertEqual(server.process.wait(TIMEOUT), -signal.SIGTERM)
            self.assert_serves(self.start_server(script, '--port', str(server.address[1])))
            self.assertEqual(ask(sock), b'HELLO')

    @unittest.skipUnless(LINUX, 'counts threads')
    def test_a_pool_without_threads(self):
        path = faulty_copy(self, 'blocking_server.py', ['thread', 0, 2, 99])
        ended = run(path, '--port', '0', '--mode', 'pool')
        self.assertEqual((ended.returncode, ended.stderr), (
            1, b"cannot start 4 threads (can't start new thread); try a smaller --pool-size\n"))


class LoopModelTest(ServerTest):
    def test_suffix_counts_the_reads(self):
        """TCP has no messages: what was sent in three is read in one, or the other way round."""
        for arguments, suffix in ([], b'_SB'), (['--suffix', ' <eh>'], b' <eh>'):
            sock = self.connect(self.start_server('selectors_server.py', *arguments))
            self.assertEqual(ask(sock, b'hi'), b'HI')
            self.assertEqual(receive(sock, len(suffix)), suffix)
            with sending(sock, [b'a' * 100000]):
                received = receive_all(sock)
            self.assertEqual(received.replace(suffix, b''), b'A' * 100000)
            self.assertGreater(received.count(suffix), 1)
            self.assertTrue(received.endswith(suffix))

    @unittest.skipUnless(POSIX, 'on Windows it counts sockets')
    def test_descriptors_from_1024_on(self):
        """select cannot watch them: a client is refused, a listener does not say `listening`."""
        for script, *arguments in (['select_server.py'], [
                'selectors_server.py', '--selector', 'select', '--suffix=']):
            server = self.start_server(crowded_copy(self, script, 1019), *arguments)
            socks = [self.connect(server) for _ in range(6)]
            server.expect(r'^refused 127\.0\.0\.1:\d+: it cannot be watched \(')
            self.assertEqual(ask(socks[0]), b'HELLO')
            self.assertEqual(socks[-1].recv(1), b'')
            socks[0].close()
            self.assertEqual(ask(socks[1]), b'HELLO')
            self.assert_serves(server)
            ended = run(crowded_copy(self, script, 1060), '--port', '0', *arguments)
            self.assertRegex(ended.stderr, rb'^cannot listen on .*: .*descriptor')
            self.assertEqual((ended.stdout, ended.returncode), (b'', 1))


class AsyncModelTest(ServerTest):
    REFUSE = '''
        import ctypes, struct, sys
        libc, filter = ctypes.CDLL(None, use_errno=True), struct.pack('HBBI' * 4,
            0x20, 0, 0, 0,                  # load the number of the system call
            0x15, 0, 1, 425,                # is it io_uring_setup?
            0x06, 0, 0, 0x00050000 | {},    # then return this error
            0x06, 0, 0, 0x7fff0000)         # else allow it (seccomp(2))
        memory = ctypes.create_string_buffer(filter)
        program = ctypes.create_string_buffer(struct.pack('HxxxxxxP', 4, ctypes.addressof(memory)))
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
            sys.exit('no seccomp here')
        '''

    @unittest.skipIf(no_io_uring, no_io_uring)
    def test_kernel_refuses_io_uring(self):
        """A seccomp filter, as in a container: auto falls back, and both engines say why."""
        for number, reason in (
                (errno.EPERM, 'refused, by a container or'), (errno.ENOSYS, 'this kernel has none'),
                (errno.EINVAL, 'needs Linux 6.0'), (errno.ENOMEM, 'too little locked memory')):
            path = patched_copy(self, 'async_server.py', before=self.REFUSE.format(number))
            try:
                server = self.start_server(path)
            except RuntimeError as error:
                self.skipTest(str(error))
            self.assert_said(server, f'^no io_uring: {reason}')
            self.assertEqual(ask(self.connect(server)), b'HELLO')
            ended = run(path, '--engine', 'io_uring', '--port', '0')
            self.assertEqual(ended.returncode, 1)
            self.assertRegex(ended.stderr.decode(), f'^io_uring is not available: {reason}.*; '
                                                    r'use --engine asyncio\n$')

    def test_which_engine_auto_takes(self):
        words = 'asyncio on (a selector|IOCP):' if no_io_uring else 'io_uring:'
        self.assert_said(self.start_server('async_server.py'), rf'\({words} \w+; Ctrl-C stops\)$')


class OperatorTest(ServerTest):
    def start_operator(self, *arguments, **options):
        server = self.start_server('socketserver_server.py', '--reply', 'operator', *arguments,
                                   stdin=subprocess.PIPE, bufsize=0, env=UTF_8, **options)
        self.addCleanup(server.process.stdin.close)
        self.assert_said(server, r'\(socketserver, an operator answers; Ctrl-C stops\)$')
        return server

    def test_operator_answers(self):
        """Escapes are shown as such; an empty answer is asked for again; `exit` ends it."""
        for mode in 'thread', 'serial':
            server = self.start_operator('--mode', mode)
            self.connect(server).close()
            server.expect(r'^127\.0\.0\.1:\d+ has left$')
            sock = self.connect(server)
            address = '%s:%d' % sock.getsockname()
            sock.sendall('hi \x1b[2J \u4e16'.encode())
            said = server.expect(f'^{address} says (.*)')[1]
            self.assertIn(said, [repr('hi \x1b[2J \u4e16'), "'hi \\x1b[2J \\u4e16'"])
            server.process.stdin.write(b'\n  \nhello yourself\n')
            self.assertEqual(receive(sock, 14), b'hello yourself')
            sock.sendall(b'exit')
            self.assertEqual(sock.recv(1), b'')
            server.expect(f'{address} has left$')
            self.assertEqual(len([line for line in server.seen() if ' says ' in line]), 1)

    def test_operator_leaves(self):
        """End of input, or none from the start: upper case from then on, and a line says so."""
        server = self.start_operator()
        sock = self.connect(server)
        sock.sendall(b'hi')
        server.expect('says')
        server.process.stdin.close()
        server.expect('the operator has left')
        self.assertEqual(receive(sock, 2), b'HI')
        self.assertEqual(ask(sock), b'HELLO')
        for command in ('exec "$@" <&-', 'exec "$@" 0>/dev/null') if POSIX and CPYTHON else ():
            server = self.start_server('socketserver_server.py', '--reply', 'operator',
                                       **with_shell(command))
            self.assertEqual(ask(self.connect(server)), b'HELLO')
            server.expect('the operator has left')

    def test_a_line_belongs_to_the_client_of_its_prompt(self):
        """Somebody has left while the operator typed for him: nobody else gets that line."""
        server = self.start_operator('--trace')
        first, second = self.connect(server), self.connect(server)
        first.sendall(b'one')
        server.expect("says 'one'")
        second.sendall(b'two')
        server.expect("#2 +recv .*b'two'")
        first.close()
        server.process.stdin.write(b'secret\n')
        server.expect("says 'two'")
        server.process.stdin.write(b'for the second\n')
        self.assertEqual(receive(second, 14), b'for the second')
        self.assert_said(server, r'127\.0\.0\.1:\d+ has left$')

    def test_half_closed_client_is_answered_or_skipped(self):
        """`printf hello | python client.py --port 8081` waits for its answer."""
        server = self.start_operator()
        first = self.connect(server)
        for typed, reply in (b'here\n', b'here'), (b'\n', b''):
            first.sendall(b'one')
            server.expect("says 'one'")
            sock = self.connect(server)
            sock.sendall(b'hi')
            sock.shutdown(socket.SHUT_WR)       # its end is there before it is asked about
            server.process.stdin.write(b'1\n')
            server.expect("says 'hi'")
            server.expect('has closed its side: Enter skips it')
            server.process.stdin.write(typed)
            self.assertEqual(receive_all(sock), reply)
            server.expect('has left$')
            self.assertEqual(first.recv(9), b'1')

    def test_a_console_that_cannot_show_everything(self):
        """Chinese is shown where the console can, and as escapes where it cannot."""
        for encoding, shown in ('gbk', '\u4f60\u597d'.encode('gbk')), ('cp437', rb'\u4f60\u597d'):
            server = start_process(
                self, *PYTHON, 'socketserver_server.py', '--reply', 'operator', '--port', '0',
                stdin=subprocess.PIPE, bufsize=0, env={**os.environ, 'PYTHONIOENCODING': encoding})
            port = int(re.search(rb':(\d+) ', server.stdout.readline())[1])
            with socket.create_connection(('127.0.0.1', port), TIMEOUT) as sock:
                sock.sendall('\u4f60\u597d'.encode())
                self.assertIn(b"says '" + shown, server.stdout.readline())
                server.stdin.write('\xe9\n'.encode(encoding, 'replace'))
                self.assertIn(sock.recv(100).decode(), '\xe9?')

    @unittest.skipUnless(LINUX and CPYTHON, 'needs the job control of a terminal')
    def test_in_the_background(self):
        """A prompt there would stop the server: the answer is in upper case, and a line says so.
        After fg the operator is asked; what was typed before is no answer. Ctrl-Z, bg: no harm."""
        master, slave = self.open_terminal()
        shell = start_process(self, 'sh', '-c', 'exec sh -i <>"$0" >&0 2>&0', os.ttyname(slave),
                              start_new_session=True)

        def type_line(line, until):
            os.write(master, line)
            return self.screen(master, until)
        command = f"'{sys.executable}' -S socketserver_server.py --port 0 | cat &\n"     # a pipe
        port = re.search(rb'0\.1:(\d+) ', type_line(command.encode(), b'Ctrl-C stops'))[1]
        with socket.create_connection(('127.0.0.1', int(port)), TIMEOUT) as sock:
            self.assertEqual(ask(sock), b'HELLO')
            self.screen(master, b'until fg: answers are in upper case')
            type_line(b'fg\n', b'_server.py')
            self.assertTrue(wait_until(lambda: os.tcgetpgrp(master) != shell.pid))
            type_line(b'typed ahead\n', b'ahead\r\n')
            sock.sendall(b'prompt')
            self.screen(master, b'>>: ')
            self.assert_waits(sock)
            type_line(b'\x1a', b'Stopped')
            type_line(b'bg\n', b'_server.py')
            self.assertEqual(receive(sock, 6), b'PROMPT')
        type_line(b'kill %1; wait; echo $((6 * 7))\n', b'42')


# ---- arguments, and errors in words

class ArgumentsTest(ServerTest):
    NOWHERE = os.path.join(FOLDER, 'no such folder', 'file')
    MISTAKES = [        # a server or the client, arguments, what it says
        ('blocking_server.py', ['--work', 'nan'], 'usage.* nan is not between'),
        ('async_server.py', ['--port', '65536'], 'usage.* 65536 is not between 0 and 65535\n$'),
        ('select_server.py', ['--host', 'no.such.host.invalid'],
         "^cannot listen on host 'no.such.host.invalid', .+\n$"),
        ('async_server.py', ['--host', '192.0.2.1'], r"^cannot listen on .*'192.+\n$"),
        ('nonblocking_server.py', ['--host', 'x' * 70 + '.com'], '^cannot listen on host .+\n$'),
        ('selectors_server.py', ['--selector', 'devpoll'],
         '^this platform has no devpoll; use --selector default\n$'),
        ('selectors_server.py', ['--selector', 'base'], "usage.* invalid choice: 'base'"),
        ('socketserver_server.py', ['--mode', 'process', '--reply', 'operator'],
         'usage.* an operator is for one process: use --mode thread\n$'),
        ('client.py', ['figur'], "usage.*invalid choice: 'figur'"),
        ('client.py', ['--prot', '1'], r'usage.*\[--port N\]'),
        ('client.py', ['figure', '--svg', NOWHERE], '^cannot write .*no such folder.*\n$'),
        ('client.py', ['load', '--connections', '0'], 'usage.* is not between 1 and 100000')]

    def test_ipv6(self):
        """A server listens on ::1 too, and says so in a form that can be pasted."""
        try:
            socket.create_server(('::1', 0), family=socket.AF_INET6).close()
        except OSError as error:
            self.skipTest(f'no IPv6 here: {error}')
        for command in EACH:
            server = self.start_server(*command, '--host', '::1')
            self.assert_said(server, r'^listening on \[::1\]:\d+ \(.*; Ctrl-C stops\)$')
            self.assert_serves(server)

    def test_errors_in_words(self):
        """One line that names the address or the value; no traceback; status 2 for usage."""
        taken = str(self.start_server('select_server.py').address[1])
        with socket.create_server(('127.0.0.1', 0)) as listener:
            free = str(listener.getsockname()[1])
        nobody = (rf"^cannot connect to host .*, port {free}: .+\s+To start a server there: "
                  rf'python blocking_server.py --port {free}\s*$')
        cases = [*self.MISTAKES, ('client.py', ['-m', 'x', '--port', free], nobody),
                 ('client.py', ['load', '--port', free], nobody)]
        cases += [(script, ['--port', taken],
                   rf"^cannot listen on host '127\.0\.0\.1', port {taken}: .+\n$")
                  for script in SERVERS]
        cases += [(faulty_copy(self, script, [call, errno.ENOBUFS, 0, 1]), ['--port', '0'],
                   '^cannot listen on .*: No buffer space available\n$')
                  for script in SERVERS for call in ('setsockopt', 'getsockname') if LINUX]
        fails = '        main()', '        raise MemoryError'
        cases.append((patched_copy(self, 'select_server.py', fails), [], '^cannot go on: out'))
        no_fork = 'import os; os.__dict__.pop("fork", None)'        # as on Windows
        cases += [(patched_copy(self, script, before=no_fork), ['--mode', 'process'],
                   '^this platform has no os.fork; use --mode thread\n$')
                  for script in ('blocking_server.py', 'socketserver_server.py')]
        self.do_each(self.check_words, cases)

    def check_words(self, script, arguments, words):
        ended = run('-X', 'dev', script, *arguments)
        said, usage = re.sub('fault:.*\n|\r', '', ended.stderr.decode()), 'usage' in words
        self.assertEqual((ended.returncode, ended.stdout), (2 if usage else 1, b''))
        self.assertRegex(said, re.compile(words, re.S if usage else 0))
        self.assertNotIn('Warning', said)       # such as a socket that is not closed

    def test_help_shows_the_docstring(self):
        """In ASCII, which any console can print, and in 80 columns."""
        for script in SERVERS + ['client.py']:
            doc = ast.get_docstring(ast.parse(read_source(script)), clean=False)
            env = {**os.environ, 'COLUMNS': '80', 'NO_COLOR': '1', 'PYTHONOPTIMIZE': ''}
            shown = run(script, '--help', env=env).stdout.decode('ascii').replace('\r', '')
            self.assertIn(doc.strip(), shown)
            self.assertLessEqual(max(map(len, shown.splitlines())), 80, script)
            for port in re.findall(r'client\.py(?: --port (\d+))?\n', doc):
                self.assertIn(f'({port or 8080};', shown)

    def test_a_bug_keeps_its_traceback(self):
        """Somebody's own answer fails: the line that did it is shown, in every server."""
        edit = 'return data.upper()\n', 'return data.decode().upper().encode()\n'
        for script, *arguments in EACH:
            if script == 'async_server.py' and not CPYTHON:
                continue        # PyPy says so when it collects the task
            server = self.start_server(patched_copy(self, script, edit), *arguments)
            self.connect(server).sendall(b'\xff')
            for pattern in 'Traceback', r'line \d+, in upper', '^UnicodeDecodeError: ':
                server.expect(pattern)

    @unittest.skipUnless(POSIX, 'needs a shell')
    @unittest.skipUnless(CPYTHON, 'PyPy gives the number of a closed stream to a socket')
    def test_started_by_a_shell(self):
        """In the background of a script Ctrl-C is not for it. After `2>&-` no trace is anywhere."""
        for script in SERVERS:
            for line in 'exec "$@" 2>&-', '"$@" 2>&1 | sed /listening/q':
                server = self.start_server(script, '--trace', **with_shell(f'trap "" INT; {line}'))
                os.killpg(server.pid, signal.SIGINT)
                self.assert_serves(server)
                self.assert_serves(server)
                self.assert_silent(server)


# ---- faults, and random clients

@unittest.skipUnless(LINUX, 'reads /proc')
class FaultTest(ServerTest):
    """Each call of a conversation fails once with each errno that plausibly comes. The client
    concerned may be lost. Its neighbours get every byte, nothing spins, nobody is refused
    afterwards, and no descriptor is left over."""
    ERRORS = {
        'accept': 'ECONNABORTED EMFILE ENFILE ENOBUFS ENOMEM EPERM EPROTO MemoryError',
        'recv': 'ECONNRESET ETIMEDOUT EHOSTUNREACH ENOMEM EAGAIN MemoryError',
        'send': 'EPIPE ECONNRESET ENOBUFS EHOSTUNREACH EAGAIN MemoryError',
        'sendall': 'EPIPE ECONNRESET ENOBUFS EHOSTUNREACH MemoryError',
        'register': 'ENOMEM ENOSPC', 'thread': 'EAGAIN', 'fork': 'EAGAIN ENOMEM',
        'getpeername': 'ENOTCONN',
        'completion': 'ECONNRESET ENOMEM EPIPE ETIMEDOUT ECANCELED EMFILE'}

    def test_faults(self):
        rows = []
        for command, calls in VARIANTS.items():
            plan = []
            for call in ['accept', *calls.split()]:
                for name in random.choices(self.ERRORS[call].split(), k=2):
                    plan.append([call, getattr(errno, name, 0), random.randrange(1, 9), 1])
            rows.append((command, plan))
        for engine, call in ('asyncio', 'task'), ('io_uring', 'task'), ('io_uring', 'append'):
            command = 'async_server.py', '--engine', engine
            if command in VARIANTS:     # whichever insert or append fails for want of memory
                rows.append((command, [[call, 0, before, 1] for before in range(1, 7)]))
        self.do_each(self.torture, rows)

    def torture(self, command, plan):
        def said(pattern):
            return [line for when, line in server.log if re.match(pattern, line)]
        server = self.start_server(faulty_copy(self, command[0], *plan), *command[1:])
        wait_until(lambda: client.proc_stat(server.pid)[0] == 'S', 1)      # asyncio's loop is open
        held, happened = count_descriptors(server.pid), 0
        for _ in range(300):
            if happened == len(plan):
                break
            lost = self.crowd(server)       # the line that explains it may come a moment later
            self.assertTrue(wait_until(lambda: len(said('fault')) >= happened + lost), server.log)
            happened = len(said('fault'))
        self.assertEqual(happened, len(plan), server.log)
        self.assertEqual(self.crowd(server), 0, server.log)
        self.assertTrue(wait_until(lambda: count_descriptors(server.pid) <= held + 1))
        self.assert_idle(server)
        self.assertEqual(said('(?!listening on|fault|refused|cannot accept)'), [])
        refusals = [call for call, *_ in plan if call in ('thread', 'fork')
                    or call == 'register' and 'selectors' in command[0]]
        self.assertEqual(len(said(r'refused 127\.0\.0\.1:\d+: (?!.*Errno)')), len(refusals))

    def crowd(self, server):
        """Let three clients talk, and return how many were lost; no other misses a byte."""
        return sum(self.talk(sock) for count in ([1, 1, 1] if 'serial' in server.name else [3])
                   for sock in [self.connect(server) for _ in range(count)])

    def talk(self, sock):
        """Return whether this client is lost; its answers are right as far as they came."""
        with sock, contextlib.suppress(ConnectionError):
            for size in 5, 3000, 1:
                data = random_bytes(size)
                received = ask(sock, data)
                self.assertEqual(received, data.upper()[:len(received)])
                if len(received) < size:
                    return True
            return False
        return True


class SwarmTest(ServerTest):
    def test_swarm(self):
        """A dozen random clients at a time: each gets what bytes.upper says, whoever leaves."""
        for command in PARALLEL:
            server = self.start_server(*command)
            end = time.monotonic() + 0.5 / len(PARALLEL)
            while time.monotonic() < end:
                clients = [[server.address, random.randrange(1 << 32)] for _ in range(24)]
                self.do_each(self.random_client, clients, threads=12)
            self.assert_serves(server)
            self.assert_silent(server)

    def random_client(self, address, seed):
        """One that half-closes and has all its bytes, or leaves sooner, perhaps by a reset."""
        choose = random.Random(seed)
        size = choose.choice([0, 1, 1000, 30000, 100000, 1000000])
        data, end = random_bytes(size), choose.choice(['half-close', 'close', 'reset'])
        wanted = len(data) + 1 if end == 'half-close' else choose.randrange(len(data) + 1)
        step = len(data) // choose.choice([1, 3, 100]) + 1
        pieces = [data[start:start + step] for start in range(0, len(data), step)]
        with socket.create_connection(address, TIMEOUT) as sock:
            with sending(sock, pieces, half_close=end == 'half-close'):
                received = receive(sock, wanted)        # it half-closes: all, and then the end
            if end == 'reset':
                reset(sock)
        self.assertTrue(received == data.upper()[:wanted], f'{len(received)} of {wanted}')


# ---- the trace

class TraceTest(ServerTest):
    """What --trace prints is what was done: a client joins, waits 0.1 s, says hello, leaves."""
    BLOCKING = ['#1 +accept +blocked {}, then 127.* joined$', "#1 +recv +blocks ...$",
                "#1 +recv +blocked {!}, then 5 bytes b'hello'$",
                "#1 +sendall +blocked {}, then 5 bytes b'HELLO'$"]
    MULTIPLEXING = ['- +select +waited {}, 1 of 1 ready: (read listener|accept)$',
                    '- +select +blocks ...$', '- +select +waited {!}, 1 of 2 ready: read #1$',
                    "#1 +recv +copied in {}: 5 bytes b'hello'$",
                    "#1 +send +copied in {}: 5 bytes b'HELLO'$"]
    started, ended = ('asked', 'ready after {!}, copied') if POSIX else (
        'submitted', 'in place, seen after {!}')
    LINES = {           # lines of each server that come in this order; {!} is 0.05 s or more
        'blocking_server.py': BLOCKING,
        'blocking_server.py --mode process': BLOCKING,
        'blocking_server.py --mode pool': [
            '- +queue +blocks ...$', '#1 +queue +queued, 0 ahead$',
            '#1 +queue +waited {} for a free worker$', BLOCKING[2]],
        'nonblocking_server.py': [
            r'#1 +recv +asked \d\d+ times in {!}, \d\d+ times "not yet"$',
            r'- +work +other work done \d\d+ times meanwhile$', *MULTIPLEXING[-2:]],
        'select_server.py': MULTIPLEXING,
        'selectors_server.py --suffix=': MULTIPLEXING,
        'async_server.py --engine io_uring': [
            '#1 +recv +queued in {}; the process goes on$', '- +enter +blocks ...$',
            '- +enter +waited {!}, then 1 completed$',
            "#1 +recv +in place, seen after {!}: 5 bytes b'hello'$",
            "#1 +sendall +taken, seen after {}: 5 bytes b'HELLO'$"],
        'async_server.py --engine asyncio': [
            f'#1 +recv +{started} in {{}}; the process goes on$',
            f"#1 +recv +{ended}: 5 bytes b'hello'$", '#1 +sendall.* {}: 5 bytes'],
        'socketserver_server.py': [
            ' bind ', 'poll +blocks ... in serve_forever', 'accept +blocks ... in get_request$',
            '#1 +accept +blocked {}, then 127.* joined$', '#1 +handle +begins',
            "#1 +recv +blocked {!}, then 5 bytes b'hello'$", '#1 +close ']}

    def test_trace(self):
        rows = [row for row in self.LINES.items() if not missing(row[0].split())]
        self.do_each(lambda *row: self.undisturbed(lambda: self.check_trace(*row)), rows)

    def check_trace(self, command, patterns):
        server = self.start_server(*command.split(), '--trace')
        with self.connect(server) as sock:
            server.expect('joined')
            time.sleep(0.1)
            self.assertEqual(ask(sock), b'HELLO')
        server.expect('#1 +close' if 'socket' in command else "#1 +recv +.*b'': the client")
        lines = [line for line in server.seen() if not line.startswith('listening')]
        for line in lines:
            self.assertRegex(line, r'^ *\d+\.\d{3} s  (#\d+|-) +[a-z/]+ +[ -~]+$')
            self.assertLessEqual(len(line), 80)
        rest = iter(lines)
        for pattern in patterns:        # each comes after the one before
            regex = pattern.replace('{!}', SPAN).replace('{}', '[0-9.]+ (?:us|ms|s)')
            match = next(filter(None, map(re.compile(regex).search, rest)), None)
            self.assertTrue(match, f'no line has {pattern!r} in {lines}')
            if '{!}' in pattern:
                self.assertTrue(0.05 < self.seconds(match) < TIMEOUT, match[0])

    def seconds(self, match):
        """Return the duration that SPAN has matched."""
        return float(match[1]) * {'s': 1, 'ms': 1e-3, 'us': 1e-6}[match[2]]

    def test_no_address(self):
        """accept may give none (macOS, if the client has left): it is said, and nobody is lost."""
        before = '''
            import socket
            real_accept, socket.socket.getpeername = socket.socket.accept, lambda sock: open('')
            socket.socket.accept = lambda sock: (real_accept(sock)[0], None)'''
        for script in SERVERS:
            if script == 'async_server.py' and not POSIX:
                continue        # asyncio's own accept calls getpeername there
            server = self.start_server(patched_copy(self, script, before=before), '--trace')
            self.assert_serves(server)
            self.assert_said(server, '#1 +accept .*an unknown address joined$')

    @unittest.skipUnless(POSIX, 'there the errors have other numbers')
    def test_once(self):
        """A call that fails for want of descriptors is no "not yet"; one time is "once"."""
        path = faulty_copy(self, 'nonblocking_server.py', ['accept', errno.EMFILE, 0, 1])

        def once():
            server = self.start_server(path, '--pause', '0.3', '--trace')
            self.connect(server)
            server.expect('joined$')
            self.assertRegex(' '.join(server.seen()), 'asked 2 times in [^,]*, once "not yet"')
        self.undisturbed(once)

    def test_slow_answer(self):
        """Why nothing happens between recv and send. No text does harm to the terminal."""
        self.do_each(self.check_slow_answer, [[command] for command in EACH])

    def check_slow_answer(self, command):
        server = self.start_server(*command, '--trace', '--delay', '0.02', '--work', '0.03')
        for number in 1, 2:
            with self.connect(server) as sock:
                ask(sock, b'hi \x1b[2J\xff' + b'x' * 100)
            for pattern in (r"recv +.*b'hi \\x1b\[2J.*\.\.\.$", r'answer +waits 0\.02 s ...$',
                            rf'answer +a?waited {SPAN}', r'answer +computes 0\.03 s ...$',
                            rf'answer +computed 0\.03 s of CPU in {SPAN}$', "send.*b'HI"):
                match = server.expect(f'#{number} +{pattern}')
                self.assertTrue(SPAN not in pattern or self.seconds(match) > 0.015, match[0])


# ---- the client

class ClientTest(ServerTest):
    def client(self, server, *arguments, **options):
        port = str(server.address[1])
        return run('-X', 'dev', 'client.py', *arguments, '--port', port, **options)

    def serve(self, converse):
        """Return something with the address of a server that holds this conversation once."""
        def serve_one():
            with listener, listener.accept()[0] as conn, contextlib.suppress(OSError):
                converse(conn)
        listener = socket.create_server(('127.0.0.1', 0))
        listener.settimeout(TIMEOUT)
        thread = threading.Thread(target=serve_one)
        thread.start()
        self.addCleanup(thread.join)
        self.address = listener.getsockname()
        return self

    def test_messages(self):
        """Each -m is sent and its reply printed, however long; blank ones are not sent."""
        server, long = self.start_server('select_server.py'), 'x' * 20000
        world = 'b\u4e16'.encode('gbk' if sys.getfilesystemencoding() == 'gbk' else 'utf-8')
        ended = self.client(server, '-m', 'hello', '-m', '  ', '-m', world, '-m', long)
        self.assertEqual(ended.stdout.decode().split(), ['HELLO', 'B\u4e16', long.upper()])
        self.assertEqual((ended.returncode, ended.stderr), (0, b''))

    def test_pipe(self):
        """More than the kernel holds, byte for byte, and none at all."""
        server = self.start_server('select_server.py')
        for size in 8 << 20, 0:
            ended = self.client(server, input=random_bytes(size))
            self.assertTrue(ended.stdout == random_bytes(size).upper())
            self.assertEqual((ended.stderr, ended.returncode), (b'', 0))

    @unittest.skipUnless(LINUX, 'needs /dev/full')
    def test_streams_that_fail(self):
        """Closed, full or unreadable: a line says so, once, and the status is 1."""
        FULL = b'cannot write to standard output: No space left on device\n'
        UNREADABLE = b'cannot read standard input: Bad file descriptor\n'
        server = self.start_server('select_server.py')
        command = f'"$0" client.py --port {server.address[1]}'
        for line, status, out, err in (
                (f'{command} < test_all.py | head -c 10', 0, 10, b''),
                (f'printf hello | {command} >&-', 1, 0,
                 b'cannot write to standard output: it is closed\n'),
                (f'{command} -m hello -m again | true', 0, 0, b''),
                (f'{command} -m hello > /dev/full', 1, 0, FULL),
                (f'PYTHONUNBUFFERED= {command} --help > /dev/full', 1, 0,
                 b'cannot go on: No space left on device\n'),
                (f'printf hello | PYTHONUNBUFFERED=1 {command} > /dev/full', 1, 0, FULL),
                (f'{command} <&-', 1, 0, UNREADABLE),
                (f'{command} 0>/dev/null', 1, 0, UNREADABLE),
                (f'{command} -m hello 2>&-', 0, 6, b'')):
            end = subprocess.run(['sh', '-c', line, sys.executable], cwd=FOLDER, timeout=60,
                                 capture_output=True)
            self.assertEqual((end.returncode, len(end.stdout), end.stderr), (status, out, err))

    @unittest.skipUnless(POSIX, 'needs descriptors that do not block')
    def test_pipes_that_do_not_block(self):
        """A slow writer before us and a slow reader behind us, buffered or not: every byte."""
        server = self.start_server('select_server.py')
        data = random_bytes(1 << 20)
        for unbuffered in '', '1':
            ours, its = socket.socketpair()
            self.addCleanup(ours.close)
            its.setblocking(False)
            ours.settimeout(TIMEOUT)
            process = start_process(self, *PYTHON, 'client.py', '--port', str(server.address[1]),
                                    stdin=its, stdout=its,
                                    env={**os.environ, 'PYTHONUNBUFFERED': unbuffered})
            its.close()
            with sending(ours, [data]):
                time.sleep(0.2)             # until it can write no more
                received = receive(ours, len(data))
            self.assertTrue(received == data.upper())
            self.assertEqual((process.wait(TIMEOUT), process.stderr.read()), (0, b''))

    @unittest.skipUnless(POSIX, 'on Windows a command line has at most 32 KB')
    def test_a_long_message_to_a_slow_server(self):
        """The silence that ends a reply is no timeout of sending, and what comes late is shown."""
        server = self.start_server('blocking_server.py', '--delay', '0.1')
        ended = self.client(server, '-m', 'a', '-m', 'x' * 120000, '--quiet', '0.05')
        self.assertEqual(''.join(ended.stdout.decode().split()), 'A' + 'X' * 120000)
        self.assertEqual((ended.returncode, ended.stderr), (0, b''))

    def test_server_goes_away(self):
        """By a reset, or after half the answer: it is said, and nothing is left open (-X dev)."""
        def half(conn):
            data = receive_all(conn)
            conn.sendall(data[:len(data) // 2].upper())

        def reset_it(conn):
            conn.recv(100)
            reset(conn)
        for converse, options, arguments, out in (
                (lambda conn: conn.recv(100), {}, ['-m', 'hello', '-m', 'again'], b''),
                (reset_it, {}, ['-m', 'hello'], b''),
                (reset_it, {'input': b'x' * 5000000}, [], b''),
                (half, {'input': b'x' * 1000}, [], b'X' * 500)):
            ended = self.client(self.serve(converse), *arguments, **options)
            self.assertEqual((ended.returncode, ended.stdout), (1, out))
            self.assertRegex(ended.stderr.decode(), r'^the server has [ -~]+\r?\n$')

    def test_reply_in_pieces(self):
        """A reply is all that comes until the line goes quiet; half a character is no end."""
        whole = '\u4e16\u754c'.encode()

        def converse(conn):
            conn.recv(100)
            for piece in whole[:1], whole[1:5], whole[5:]:
                conn.sendall(piece)
                time.sleep(0.02)
            conn.sendall(conn.recv(100).upper())
            conn.recv(1)
        ended = self.client(self.serve(converse), '-m', 'hello', '-m', 'next')
        self.assertEqual(ended.stdout.replace(b'\r', b''), whole + b'\nNEXT\n')

    def chat_at_terminal(self, server, script='client.py', before=(), **options):
        """Start a client on a new terminal; return our side of it, and the client."""
        master, slave = self.open_terminal()
        return master, start_process(
            self, *before, *PYTHON, script, '--port', str(server.address[1]),
            stdin=slave, stdout=slave, stderr=slave, **options)

    def test_chat_at_a_terminal(self):
        """Lines, escapes, exit, Ctrl-D, Ctrl-C (or ignored); a server that leaves; in GBK too."""
        server = self.start_server('selectors_server.py', '--suffix', '\x1b[2J')
        for leave, status, encoding in (
                (b'exit\n', 0, 'gbk'), (b'\x04', 0, 'utf-8'), (None, -signal.SIGINT, 'utf-8'),
                (server.stop, 1, 'utf-8')):
            ignores = {}
            if leave == server.stop and CPYTHON:        # PyPy does not learn that it is ignored
                ignores = with_shell('trap "" INT; exec "$@"')
            master, process = self.chat_at_terminal(
                server, env={**os.environ, 'PYTHONIOENCODING': encoding}, **ignores)
            self.assertRegex(self.screen(master, b'>>: '),
                             rb'connected to 127\.0\.0\.1, port \d+, from port \d+;')
            os.write(master, b'\n')
            self.screen(master, b'>>: ')
            os.write(master, 'hello \u4f60\n'.encode(encoding))
            self.screen(master, 'HELLO \u4f60\\x1b[2J\r\n>>: '.encode(encoding))
            if leave is None or ignores:
                process.send_signal(signal.SIGINT)
            if leave == server.stop:
                server.stop()
                self.screen(master, b'the server has closed the connection')
            elif leave:
                os.write(master, leave)
            self.assertEqual(process.wait(TIMEOUT), status)

    def test_late_words(self):
        """What a server says unasked is shown at the prompt, with 1100 open descriptors too."""
        path = crowded_copy(self, 'client.py', 1060)
        master, process = self.chat_at_terminal(self.serve(lambda conn: conn.send(b'late')), path)
        self.assertIn(b'late\r\n', self.screen(master, b'closed the connection'))
        self.assertEqual(process.wait(TIMEOUT), 1)


class LoadTest(ServerTest):
    LAST = '#11 +recv'      # in a trace: it asks whether somebody listens, then 10 connect

    def start_load(self, server, options, script='client.py'):
        return start_process(self, *PYTHON, script, 'load', '--port', str(server.address[1]),
                             '--json', *options.split())

    def load(self, server, options='', status=0):
        return self.report(self.start_load(server, '--seconds 0.2 ' + options), status)

    def report(self, process, status):
        out, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual((process.returncode, err), (status, b''))
        return json.loads(out)

    def test_load(self):
        """Busy and idle connections, large messages, new connections: no errors, sane figures."""
        for command, options in (('async_server.py', '--size 300000'),
                                 ('select_server.py', '--reconnect --size 1 --idle 30'),
                                 ('select_server.py', '--reconnect --rate 200 --text'),
                                 ('blocking_server.py --mode process', '--reconnect')):
            if missing(command.split()):
                continue
            server = self.start_server(*command.split())
            report = self.load(server, '--connections 5 ' + options)
            self.assertEqual(report['errors'], {}, server.name)
            self.assertGreater(report['requests'], 5)
            self.assertLess(report['client_cpu_percent'], 70 if report['rate'] else 101)
            times = [report[f'{each}_ms'] for each in ('p50', 'p95', 'p99', 'p99_9', 'max')]
            self.assertEqual(times, sorted(times))
            if LINUX:
                self.assertTrue(0.5 < report['server_cpu_us_per_request'] < 50000, report)
                self.assertGreaterEqual(report['others_percent'], 0)

    def test_open_loop(self):
        """What is due is sent. Of what is due twice as fast as it is answered some is not."""
        server = self.start_server('select_server.py')

        def as_due():
            report = self.load(server, '--rate 500 --connections 10 --seconds 0.5')
            self.assertAlmostEqual(report['requests'] + report['open_requests'], 250, delta=8)
            self.assertEqual(report['due_not_sent'], 0)
        self.undisturbed(as_due)
        server = self.start_server('blocking_server.py', '--mode', 'serial', '--delay', '0.01')
        report = self.load(server, '--rate 200 --connections 1 --seconds 1')
        self.assertGreater(report['due_not_sent'], 70)
        self.assertGreater(report['p95_ms'], 300)

    @unittest.skipUnless(POSIX, 'needs POSIX signals')
    def test_open_loop_and_a_frozen_server(self):
        """Whoever was due while it stood still waited: the p95 says so, the p50 does not."""
        def frozen():
            server = self.start_server('select_server.py', '--trace')
            process = self.start_load(server, '--rate 200 --connections 10 --seconds 2.4')
            server.expect(self.LAST)
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(0.6)
            server.process.send_signal(signal.SIGCONT)
            report = self.report(process, 0)
            self.assertGreater(report['p95_ms'], 250)
            self.assertLess(report['p50_ms'], 50)
        self.undisturbed(frozen)

    def test_text(self):
        """A server of lines answers only lines. Nobody gets an answer without --text: status 1."""
        server = self.start_server(patched_copy(self, 'select_server.py', (
            'send(conn, answer(', "data.endswith(b'\\n') and send(conn, answer(")))
        for option, status in ('--text', 0), ('', 1):
            report = self.load(server, '--connections 1 ' + option, status)
            self.assertEqual(report['never_answered'], status)
            self.assertEqual(report['errors'], {})

    def test_wrong_answers(self):
        """A flipped byte, and a suffix: counted, and the first that differs is shown."""
        path = patched_copy(self, 'select_server.py', (
            'return data.upper()\n', 'return bytes([data[0] ^ 1]) + data.upper()[1:]\n'))
        for command, words in ([path], r'^byte 0 of an answer: b.* instead of b'), (
                ['selectors_server.py'], r"^byte 64 of an answer: b'_SB' .*--suffix=\)$"):
            report = self.load(self.start_server(*command), status=1)
            self.assertGreater(report['errors']['wrong answer'], 0)
            self.assertEqual(report['requests'], 0)
            self.assertRegex(report['first_wrong'], words)

    @unittest.skipUnless(POSIX, 'needs POSIX signals')
    def test_frozen_server(self):
        """Open requests count; finding out what CPU was used does not. Ctrl-C prints the report."""
        server = self.start_server('select_server.py', '--trace')
        path = patched_copy(self, 'client.py', (
            'not_known = server_cpu(', 'not_known = time.sleep(1) or server_cpu('))
        process = self.start_load(server, '--seconds 20 --connections 10', path)
        server.expect(self.LAST)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        report = self.report(process, 130)
        self.assertTrue(report['interrupted'])
        self.assertEqual(report['open_requests'], 10)
        self.assertGreater(report['max_ms'], 300)
        self.assertLess(report['max_ms'], 1e3 * report['seconds'])

    def test_server_dies(self):
        """That is an error in words, between two messages or in the middle of one."""
        for size in '64', '8000000':
            server = self.start_server('select_server.py', '--trace')
            process = self.start_load(server, '--seconds 20 --connections 10 --size ' + size)
            server.expect(self.LAST)
            server.stop()
            self.assertTrue(self.report(process, 1)['errors'])

    def test_idle_ones_are_lost(self):
        """That is an error, but no end for the others."""
        refuse = '        if next(COUNT) < 6:\n            raise ValueError\n'
        path = patched_copy(self, 'select_server.py', (
            '        conn.setblocking', refuse + '        conn.setblocking'),
            before='import itertools; COUNT = itertools.count()')
        report = self.load(self.start_server(path), '--connections 2 --idle 5', 1)
        self.assertEqual(sum(report['errors'].values()), 5)
        self.assertGreater(report['seconds'], 0.19)

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_cpu_of_the_server_that_holds_our_connection(self):
        """Others listen on that port number: on another address, or with SO_REUSEPORT."""
        path = patched_copy(self, 'select_server.py', ('SO_REUSEADDR', 'SO_REUSEPORT'))
        first = self.start_server(path)
        port = str(first.address[1])
        self.start_server(path, '--port', port)
        polling = self.start_server('nonblocking_server.py', '--host', '127.0.0.2', '--port', port)
        before = client.listeners_cpu(first.address)
        self.assertGreaterEqual(len(before), 3)
        socks = [self.connect(first) for _ in range(20)]
        for sock in socks:
            ask(sock)
        wait_until(lambda: client.cpu_seconds(polling.pid) > before[polling.pid] + 0.2)
        self.assertLess(client.server_cpu(first.address, before)[0], 0.1)
        self.assertEqual(client.receive_queue(first.address, socks[0].getsockname()), 0)

    @unittest.skipUnless(client.HAS_PROC, 'reads /proc')
    def test_cpu_of_a_server_for_ipv6_and_ipv4(self):
        """Its IPv4 connections are ::ffff:127.0.0.1 to the kernel. Of a stranger it says why."""
        with contextlib.suppress(RuntimeError):         # no IPv6 here
            server = self.start_server('select_server.py', '--host', '::')
            address = '127.0.0.1', server.address[1]
            before = client.listeners_cpu(address)
            with socket.create_connection(address, TIMEOUT) as sock:
                self.assertEqual(ask(sock), b'HELLO')
                self.assertGreaterEqual(client.server_cpu(address, before)[0], 0)
        self.assertRegex(client.server_cpu(('127.0.0.1', 9), {})[1], 'no process of ours')

    @unittest.skipUnless(POSIX, 'Windows has no limit of open files')
    def test_limit_of_open_files(self):
        """It is raised where that is allowed, and never lowered."""
        import resource
        for limits, expected in (((256, 4096), 4096), ((1 << 30, 1 << 30), 1 << 30),
                                 ((1024, 1 << 30), 10240), ((256, 256), 256)):
            with unittest.mock.patch.object(resource, 'getrlimit', lambda kind: limits), \
                    unittest.mock.patch.object(resource, 'setrlimit') as raised:
                self.assertEqual(client.raise_file_limit(), expected)
                self.assertEqual(raised.called, expected != limits[0])


# ---- figure and compare

class CompareTest(ServerTest):
    MEASURED = [(metric, model) for metrics, _, _, models in client.EXPERIMENTS
                for metric in metrics.split() for model in models if metric != '-']

    def made_up(self, values, disturbed=False):
        """Return a Run with these values, {(metric, model): list}."""
        run = client.Run()
        run.whole = unittest.mock.Mock(words=lambda: '')      # nothing disturbed it as a whole
        run.measured = {key: [(each, disturbed) for each in found] for key, found in values.items()}
        return run

    def verdict(self, conditions, run):
        return client.judge(run, 'section', 'claim', conditions)['verdict']

    def test_verdicts(self):
        """Ranges a tenth apart decide. Disturbed ones deny nothing, of wall time decide nothing."""
        for metric, low, high, verdict, disturbed in (
                ('cpu_100', [1, 1], [2, 2], client.HOLDS, client.HOLDS),
                ('cpu_100', [2, 2], [1, 1], client.FAILS, client.UNSURE),
                ('cpu_100', [1, 3], [2, 2], client.UNSURE, client.UNSURE),
                ('cpu_100', [1, 1], [1.05, 2], client.UNSURE, client.UNSURE),
                ('second', [1, 1], [2, 2], client.HOLDS, client.UNSURE)):
            conditions = [f'{metric}@select < {metric}@pool of 4', f'{metric}@select < 900']
            values = {(metric, 'select'): low, (metric, 'pool of 4'): high}
            self.assertEqual(self.verdict(conditions, self.made_up(values)), verdict)
            self.assertEqual(self.verdict(conditions, self.made_up(values, True)), disturbed)
        run = self.made_up({('cpu_100', 'select'): [1, 1.1]})
        self.assertEqual(self.verdict(['2 * cpu_100@select < 2.5'], run), client.HOLDS)
        for conditions in ['second@io_uring < 1'], []:
            self.assertEqual(self.verdict(conditions, run), client.NONE)
        run = self.made_up({('cpu_100', 'select'): [9, 9]}, disturbed=True)
        run.measured['cpu_100', 'select'].append((1, False))    # a clean value replaces them
        self.assertEqual(self.verdict(['cpu_100@select < 2'], run), client.HOLDS)

    def test_every_metric_is_measured_and_used(self):
        """In claims, in the table or in the growth of cost."""
        used = {metric for metric, row in client.METRICS.items() if row.head}
        used |= {f'with_{step}' for step in client.STEPS}
        for section, claim, conditions in client.CLAIMS:
            for metric, model in re.findall(r'(\w+)@([\w -]+?)(?: <|;|$)', ';'.join(conditions)):
                self.assertIn((metric, model), self.MEASURED, claim)
                used.add(metric)
        self.assertEqual({metric for metric, _ in self.MEASURED}, set(client.METRICS))
        self.assertEqual(used, set(client.METRICS))

    def test_report(self):
        """At most 100 lines of 80 columns; a claim takes three at most. 1 does, 2 do not hold."""
        run = self.made_up({key: [each * client.METRICS[key[0]].unit for each in (123.4, 234.5)]
                            for key in self.MEASURED})
        judged = [{**client.judge(run, *row), 'verdict': client.UNSURE} for row in client.CLAIMS]
        for claim in judged:
            self.assertLessEqual(len(client.claim_rows([claim])), 3, claim)
        run.failed['io_uring', ''] = 'no \x1b[2J' + 90 * 'x'
        lines = [text_of(row).rstrip() for row in client.report_rows(run, judged, partial=True)]
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertLessEqual(len(lines), 100)
        for number, words in (1, 'claims hold here, 1 does not hold'), (2, 'here, 2 do not hold'):
            for claim, verdict in zip(judged, number * [client.FAILS] + [client.HOLDS]):
                claim['verdict'] = verdict
            self.assertIn(words, text_of(client.head_rows(run, judged, False)[0]))

    def test_what_fails_is_a_reason(self):
        """Whatever the server does, and a bug of ours too: the rest is measured."""
        kinds = {'wrong': ('return data.upper()', 'return b"?" * len(data)'),
                 'drops': ('send(conn, answer(conn, data))', 'close(conn)'),
                 'ends': ('send(conn, answer(conn, data))', 'sys.exit()'),
                 'starts not': ('def main():', 'def main():\n    sys.exit("no way")')}
        models = {kind: (patched_copy(self, 'select_server.py', patch),)
                  for kind, patch in kinds.items()}
        experiments = [('rate_100', functools.partial(client.busy, clients=2), (), models),
                       ('second', functools.partial(client.client_wait, before=1), (), models),
                       ('held', lambda server: {}['a bug'], (), models),
                       ('workers', lambda server: 7, (), models)]
        with unittest.mock.patch.dict(client.MODELS, models), \
                unittest.mock.patch.object(client, 'EXPERIMENTS', experiments):
            run = client.Run()
            for kind in models:
                run.do(kind)
                if kind != 'starts not':
                    self.assertEqual(run.measured['workers', kind][0][0], 7)
                    self.assertRegex(run.failed[kind, 'rate_100'],
                                     'wrong answer' if kind == 'wrong' else 'closed|reset')
                    self.assertIn((kind, 'second'), run.failed)
                    self.assertIn('a bug', run.failed[kind, 'held'])
            self.assertEqual(run.failed['starts not', ''], 'no way')

    @unittest.skipUnless(client.HAS_PROC, 'reads /proc')
    def test_disturbance(self):
        """By others, not our servers. What was disturbed is measured again, once if that fails."""
        polling = self.start_server('nonblocking_server.py')
        knows, does_not = client.Disturbance(), client.Disturbance()
        wait_until(lambda: client.cpu_seconds(polling.pid) > 0.3)
        knows.stop()
        Server.running.discard(polling)
        self.assertLess(knows.others, does_not.stop().others)
        for _ in range(2 * client.PROCESSORS):
            start_process(self, *PYTHON, '-c', 'while True: pass')
        watch = client.Disturbance()
        time.sleep(0.5)
        self.assertTrue(watch.stop().disturbed)
        self.assertRegex(watch.words(), r'^other programs used \d\d+ % of the processors$')
        run, done = client.Run(), []
        run.do = lambda model: done.append(model) or True
        client.measure(run, ['socketserver thread', 'select'], 9)
        self.assertEqual(done, ['socketserver thread', 'select', 'select'])

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_signals_leave_no_server(self):
        """Not one that is just being started either: here that moment is long."""
        path = patched_copy(
            self, 'client.py', ('os.path.dirname(os.path.realpath(__file__))', repr(FOLDER)), (
                '            Server.running.add(self)\n',
                '            time.sleep(0.15)\n            Server.running.add(self)\n'))
        for command, number in (('figure', signal.SIGINT), ('compare', signal.SIGTERM),
                                ('compare', signal.SIGHUP)):
            process = start_process(self, *PYTHON, path, command)
            self.assertTrue(wait_until(lambda: children(process.pid)))
            servers = children(process.pid)
            process.send_signal(number)
            out, err = process.communicate(timeout=TIMEOUT)
            self.assertEqual((process.returncode, err), (128 + number, b''))
            self.assertIn(b'PARTIAL' if command == 'compare' else b'', out)
            self.assertTrue(all_ended(servers))

    @unittest.skipUnless(POSIX, 'needs symbolic links and SIGCHLD')
    def test_a_link_to_the_client(self):
        """Servers stand beside the real file. How one ended is known, though SIGCHLD is ignored."""
        code = ('import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); import client; '
                'client.prepare(); print(client.Server("select_server.py").stop())')
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(os.path.join(FOLDER, 'client.py'), os.path.join(folder, 'client.py'))
            ended = run('-c', code, cwd=folder, env={**UTF_8, 'PYTHONPATH': folder})
        self.assertEqual(ended.stdout.strip(), b'-9')


class FigureTest(ServerTest):
    @unittest.skipUnless(client.HAS_PROC, 'reads /proc')
    def test_one_read(self):
        """Each sleeps but those that poll, whatever their name. One that is missing says why."""
        multiplexing = r'z+ asleep z+#  waited \d{3}\.\d ms, copied in \d+ us$'
        expected = {
            'blocking': r'\?+ asks \?+#  blocked in recv \d+ us$',
            'non-blocking': r'\?+ asks \?+#  asked \d{3,} times, copied in \d+ us$',
            'select': multiplexing, 'selectors': multiplexing, 'asyncio': '^missing: ',
            'io_uring': r'z+ asleep z+   in place, seen after \d{3}\.\d ms$'}
        polls = patched_copy(self, 'blocking_server.py', (
            'data = conn.recv(BUFSIZE) ',
            'while not select.select([conn], [], [], 0)[0]:\n'
            '                    pass\n                data = conn.recv(BUFSIZE) '),
            before='import select')
        patches = {'blocking serial': (polls, '--mode', 'serial'), 'asyncio': ('no_server.py',)}

        def drawn():
            rows = {text_of(row[:1]).strip(): text_of(row[1:]) for row in client.one_read()}
            for name, pattern in expected.items():
                if name != 'io_uring' or not no_io_uring:
                    self.assertRegex(rows[name], pattern)
        with unittest.mock.patch.dict(client.MODELS, patches):
            self.undisturbed(drawn)

    @unittest.skipUnless(client.HAS_PROC, 'reads /proc')
    def test_who_copies_while_the_process_computes(self):
        """Section 4: with io_uring the kernel copies while the process computes for another client.
        Not so in other models, nor with IORING_SETUP_DEFER_TASKRUN, the exercise of README."""
        defer = patched_copy(self, 'async_server.py', ('| IORING_SETUP_COOP_TASKRUN', '| 1 << 13'))
        cases = [(client.MODELS['asyncio'], 'recv')]
        if not no_io_uring:
            cases += [(client.MODELS['io_uring'], 'the kernel'),
                      ([defer, '--engine', 'io_uring'], 'recv')]
        for command, copier in cases:
            server = self.start_server(*command, '--work', str(client.COMPUTE))
            self.undisturbed(lambda: self.assertIn(copier, text_of(client.bytes_row(server))))

    def test_three_clients(self):
        """Loops are drawn as the first of them; one that is missing says why; the SVG is alike."""
        models = ['select', 'selectors select', 'missing']

        def played():
            with unittest.mock.patch.dict(client.GROUPS, {'loops': models}, clear=True):
                rows = client.three_clients()[3:-2]
            for row, least in (rows[2], 0.9 * client.SLOW), (rows[3], 1.4 * client.SLOW):
                for waited in re.findall(r'(\d\.\d+) s', text_of(row)):
                    self.assertGreater(float(waited), least)    # C is held up by B
            self.assertRegex(text_of(rows[2]), r'^2 within +B +!d+ .* !c+ ')
            self.assertRegex(text_of(rows[3]), r'^\d+ ms +C +!N+H*d+ .* !N+H*c+ ')
            return rows
        with unittest.mock.patch.dict(client.MODELS, missing=('no_server.py',)):
            rows = self.undisturbed(played)
        text = [text_of(row) for row in rows]
        self.assertRegex(text[0], 'missing +missing: ')
        self.assertLessEqual(max(map(len, map(str.rstrip, text))), 80)
        rows.append([('title', 'not \x1b[2J XML: <&>')])
        picture = xml.dom.minidom.parseString(client.draw_rows(rows, 'a title'))
        drawn = [each.firstChild.data for each in picture.getElementsByTagName('text')]
        self.assertEqual(''.join(drawn), ''.join(client.printable(text_of(row)) for row in rows))

    def test_the_file_of_the_picture(self):
        """It is whole, or as it was: a run that ends early has not touched it."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'picture.svg')
            client.write_svg(path, None)
            self.assertEqual(os.listdir(folder), [])
            client.write_svg(path, 'old')
            client.write_svg(path, None)
            with unittest.mock.patch('builtins.open', side_effect=OSError(28, 'full')):
                with self.assertRaisesRegex(SystemExit, 'cannot write to .*picture.svg.*: full'):
                    client.write_svg(path, 'new')
            with open(path) as file:
                self.assertEqual(file.read(), 'old')

    def test_colours(self):
        """On a terminal that shows them, and nowhere else."""
        code = "import client; client.print_rows([[('copy', '\\x1b[2J#')]])"
        for term, no_colour, coloured in (('xterm', '', True), ('dumb', '', False),
                                          ('xterm', '1', False)):
            master, slave = self.open_terminal()
            start_process(self, *PYTHON, '-c', code, stdout=slave, env={
                **UTF_8, 'PYTHONPATH': FOLDER, 'TERM': term, 'NO_COLOR': no_colour}).wait(TIMEOUT)
            self.assertEqual(b'\x1b[' in self.screen(master, b'#'), coloured)


# ---- can the contract fail?

@unittest.skipUnless(LINUX, 'elsewhere some tests of the contract are skipped')
class MutationTest(ServerTest):
    """Servers that are wrong on purpose: the contract must catch each by the test for it."""

    UPPER = 'return data.upper()\n'
    MUTATIONS = [       # the test, and what is replaced in select_server.py: (old, new)
        ('test_answers', UPPER, UPPER.replace('upper', 'swapcase')),
        ('test_answers', 'send(conn, answer(', 'data[-1] == 10 and send(conn, answer('),
        ('test_stalled_reader', 'data[sent:]', 'data[sent + 1:]'),
        ('test_resets', 'this one ends\n        close(conn)', 'this one ends\n        raise'),
        ('test_resets', 'timeout = None', 'timeout = 0'),
        ('test_stalled_reader', 'sent = conn.send(data)\n',
         'conn.setblocking(True)\n        conn.sendall(data)\n        sent = len(data)\n'),
        ('test_out_of_descriptors', '            rlist.remove(listener)\n', ''),
        ('test_out_of_descriptors', '            rlist.add(listener)\n', '            pass\n'),
        ('test_accept_fails', 'report_accept_error(error)\n        return', 'return'),
        ('test_accept_fails', '(OSError, MemoryError) as', 'OSError as'),
        ('test_accept_fails', 'len(rlist) + len(wlist) == 1', 'False'),
        ('test_accept_fails', '        accept_failed = True\n', ''),
        ('test_out_of_descriptors', 'timeout = RETRY_DELAY', 'time.sleep(RETRY_DELAY)'),
        ('test_not_yet', '    except BlockingIOError:         # a', '    except KeyError:     # a'),
        ('test_not_yet', 'except BlockingIOError:\n        sent', 'except KeyError:\n        sent'),
        ('test_no_leaks', '    rlist.discard(conn)\n    conn.close()\n',
         '    rlist.discard(conn)\n    reported.add(conn)\n'),
        ('test_500_at_once', '  accept(listener)', '  [accept(listener) for _ in range(500)]'),
        ('test_500_at_once', 'listen(max(socket.SOMAXCONN, 4096))', 'listen(5)'),
        ('test_stop_signals', 'signal.SIGINT, signal.SIG_DFL', 'signal.SIGTERM, signal.SIG_IGN'),
        ('test_stop_signals', 'SO_REUSEADDR, 1', 'SO_REUSEADDR, 0'),
        ('test_slow_answers', 'if args.work:', 'if not args:')]

    def test_each_mutation_is_caught(self):
        with self.assertRaises(self.failureException):      # a server that is right is not caught
            self.assert_caught('test_answers', '', '')
        self.do_each(lambda *row: self.undisturbed(lambda: self.assert_caught(*row)),
                     self.MUTATIONS, threads=6)

    def assert_caught(self, name, old, new):
        traits = {'script': patched_copy(self, 'select_server.py', (old, new)), **LOOP,
                  'timeout': 1.5, 'quiet': 0.5, 'idle_seconds': 0.3, 'crowd_seconds': 0.8}
        mutant, result = type('Mutant', (Contract, ServerTest), traits), unittest.TestResult()
        mutant.setUpClass()
        for _ in range(2):
            if not (result.failures or result.errors or result.skipped):
                mutant(name).run(result)
        mutant.doClassCleanups()
        self.assertTrue(result.failures or result.errors or result.skipped)


# ---- what is written: the scripts and the README

class SourceTest(unittest.TestCase):
    readme = property(lambda self: read_source('README.md'))

    @functools.lru_cache(maxsize=None)
    def arguments(self, script, *command):
        shown = run(script, *command, '--help').stdout.decode()
        options = re.split(r'\n(?:options|optional arguments):', shown)[-1]
        return set(re.findall(r'(?<![\w-])(--?[a-z][a-z-]*)', options))

    def test_servers_are_alike(self):
        """The same parts in the same order, and the last the same to the letter."""
        parts, shared = ['the model', 'start', '--trace', 'the same in every server'], set()
        for script in SERVERS:
            source = read_source(script)
            heads = re.findall('^# ---- (.*)$', source, re.M)
            self.assertEqual([head for head in heads if head in parts], parts)
            shared.add(source.partition('# ---- the same in every server\n')[2])
        self.assertEqual(len(shared), 1)

    def test_every_command_exists(self):
        """Each `python ...` of the page names a script that is there, and arguments it takes."""
        found = re.findall(r'python (?!listing)(\w+\.py)([^\n`|<>#]*)', self.readme)
        self.assertGreater(len(found), 20)
        for script, rest in found:
            self.assertIn(script, SCRIPTS)
            words, command = rest.split(), []
            if script == 'client.py':
                command = words[:1] if words and words[0].isalpha() else ['chat']
            known = set() if script == 'test_all.py' else self.arguments(script, *command)
            for word in words:
                if word.startswith('-'):
                    self.assertIn(word.split('=')[0], known, f'{script} {rest}')

    def test_excerpts_stand_in_the_scripts(self):
        """Each block of Python on the page is a part of a script, to the letter."""
        sources = [read_source(script) for script in SCRIPTS]
        excerpts = re.findall(r'^```python\n(.*?)^```$', self.readme, flags=re.M | re.S)
        self.assertGreater(len(excerpts), 5)
        for excerpt in excerpts:
            indented = [textwrap.indent(excerpt, depth * ' ') for depth in range(0, 20, 4)]
            self.assertTrue(any(each in source for each in indented for source in sources), excerpt)

    def test_blocks_can_be_pasted(self):
        """A block of commands has neither prompts nor output, and each line fits a terminal."""
        blocks = re.findall(r'^ *```(\w+)\n(.*?)^ *```$', self.readme, flags=re.M | re.S)
        self.assertEqual({kind for kind, _ in blocks}, {'sh', 'py', 'python', 'text'})
        for kind, block in blocks:
            if kind == 'py':
                compile(block, 'README.md', 'exec')
            for line in textwrap.dedent(block).splitlines() if kind == 'sh' else ():
                self.assertRegex(line, r'^\(?(python|printf|head|sleep|ss|ps|strace|kill) ')
                self.assertLessEqual(len(line), 80, line)

    def test_links_lead_to_headings(self):
        headings = re.findall(r'^#+ (.*)$', self.readme, flags=re.M)
        anchors = {re.sub(r'[^\w -]', '', each).lower().replace(' ', '-') for each in headings}
        self.assertLessEqual(set(re.findall(r'\]\(#(.*?)\)', self.readme)), anchors)


if __name__ == '__main__':
    unittest.main()

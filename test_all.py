"""Proves every server on this machine: python -m unittest (-v; -k stalled; test_all.SelectTest).

One table of tests, `Contract`, runs against every server and mode of the folder. Then come the
tests of what is particular to each model, of a hostile world, of the trace, the client and the
README. `MutationTest` runs the same table against servers that are wrong on purpose; each must be
caught. `TortureTest` makes one call after the other fail, and `SwarmTest` sends random clients.
Both print their seed when they fail. With IO_MODELS_SOAK=SECONDS in the environment each of the
two runs so long.

No test sleeps when it can wait for an event: for a line, for bytes, for the end of a connection.
Times are asserted with a wide margin, since machines are shared. Speed is the business of
client.py.
"""
import ast
import difflib
import errno
import functools
import json
import os
import random
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
import unittest.mock
import xml.dom.minidom

import client
from client import FOLDER, LINGER_ZERO, Server

Server.python = PYTHON = [sys.executable, '-S']     # no site-packages: no script needs one
POSIX = os.name == 'posix'
LINUX = sys.platform.startswith('linux')
TIMEOUT = 10        # seconds until a test takes "not yet" for "never"
SOAK = float(os.environ.get('IO_MODELS_SOAK', 0))
SERVERS = ['blocking_server.py', 'nonblocking_server.py', 'select_server.py', 'selectors_server.py',
           'async_server.py', 'socketserver_server.py']
SCRIPTS = SERVERS + ['client.py', 'test_all.py']
SPAN = r'([\d.]+) (us|ms|s)'        # a duration in the words of the trace


# ---- if the run is stopped, no server stays

def setUpModule():
    """Let a signal to this process alone (the stop button of an IDE) end the servers too."""
    global old_handlers
    old_handlers = {}
    if POSIX and threading.current_thread() is threading.main_thread():
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            handler = end_children
            if signal.getsignal(number) == signal.SIG_IGN:      # nohup, or in the background
                handler = ignore        # not SIG_IGN: what we start would inherit that
            old_handlers[number] = signal.signal(number, handler)


def ignore(number, frame):
    pass


def tearDownModule():
    for number, handler in old_handlers.items():
        signal.signal(number, handler)


def children():
    """Return the pids of the processes that we have started and that still run."""
    if not LINUX:
        return [each.pid for each in list(Server.running) if each.process.poll() is None]
    return [pid for pid in client.process_tree(os.getpid())[1:] if still_runs(pid)]


def still_runs(pid):
    """Return whether a process has not ended. (A zombie has: its parent only has not asked yet.)"""
    try:
        return client.proc_stat(pid)[0] != 'Z'
    except OSError:
        return False


def end_children(number, frame):
    """End all children, politely first, and then ourselves by the same signal."""
    end = time.monotonic() + 3
    while children() and time.monotonic() < end + 1:
        for pid in children():
            try:
                os.kill(pid, signal.SIGTERM if time.monotonic() < end else signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.05)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


# ---- helpers

def connect(server, timeout=TIMEOUT):
    return socket.create_connection(server.address, timeout)


def receive(sock, count):
    """Return COUNT bytes, or fewer if the other side ends before."""
    data = b''
    while len(data) < count:
        received = sock.recv(count - len(data))
        if not received:
            break
        data += received
    return data


def receive_all(sock):
    return b''.join(iter(lambda: sock.recv(65536), b''))


def ask(sock, data=b'hello'):
    sock.sendall(data)
    return receive(sock, len(data))


def random_bytes(count):
    bits = random.Random(count).getrandbits(8 * count) if count else 0
    return bits.to_bytes(count, 'little')


def send_until_blocked(sock, quiet=0.1, most=200 << 20):
    """Send until nothing has gone for QUIET seconds, and read nothing; return what was sent."""
    sock.setblocking(False)
    sent = bytearray()
    chunk = random_bytes(65536)
    while len(sent) < most and select.select([], [sock], [], quiet)[1]:
        try:
            sent += chunk[:sock.send(chunk)]
        except BlockingIOError:
            pass
    sock.settimeout(TIMEOUT)
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
    """Return whether all these processes end. (Not at once: a number may soon be another's.)"""
    return wait_until(lambda: not any(map(still_runs, pids)))


def count_descriptors(pid):
    return len(os.listdir(f'/proc/{pid}/fd'))


def run(*command, **options):
    """Run a command to its end; return it with what it printed as bytes."""
    options = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE,
               'timeout': 60, **options}
    if 'input' in options:
        del options['stdin']
    return subprocess.run([*PYTHON, *command], cwd=FOLDER, **options)


def read_source(script):
    with open(os.path.join(FOLDER, script), encoding='utf-8') as file:
        return file.read()


def remaining_lines(server):
    """Return the lines that a server prints from now until its end."""
    lines = []
    while server.open_streams:
        line = server.lines.get(timeout=TIMEOUT)
        server.open_streams -= line is None
        lines.append(line)
    return [line for line in lines if line is not None]


def with_shell(command):
    """Return the option with which a server is started by a line of shell, `exec "$@"` in it."""
    return {'before': ['sh', '-c', command, 'sh']}


def refused_io_uring():
    """Return why this kernel does not permit io_uring, or None. We ask it ourselves: if we asked
    the script, a broken script would skip its own tests."""
    if not LINUX or sys.implementation.name != 'cpython':
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
        case.assertIn(old, source)
        source = source.replace(old, new)
    folder = tempfile.TemporaryDirectory()
    add_cleanup = case.addClassCleanup if isinstance(case, type) else case.addCleanup
    add_cleanup(folder.cleanup)
    path = os.path.join(folder.name, os.path.basename(script))
    with open(path, 'w', encoding='utf-8') as file:
        file.write(textwrap.dedent(before) + '\n' + source)
    return path


# Code that runs before a server: it counts the calls, and some fail. PLAN has a list for each
# fault: the call, the number of the first call that fails, how many fail, errno (0: MemoryError).
FAULTS = '''
import json, mmap, os, select, selectors, signal, socket, sys, threading

PLAN, PLAN_FILE, counts, counting = {plan!r}, {file!r}, {{}}, threading.Lock()
failed = mmap.mmap(-1, 16)      # which faults have happened: shared with the processes

def fault(call):
    with counting:
        number = counts[call] = counts.get(call, 0) + 1
    for index, (name, first, count, error) in enumerate(PLAN):
        if name == call and first <= number < first + count:
            if count == 1 and failed[index]:
                continue        # in another process
            failed[index] = 1
            raise OSError(error, os.strerror(error)) if error else MemoryError()

def faulty(call, function):
    def wrapped(*arguments, **options):
        fault(call)
        return function(*arguments, **options)
    return wrapped

def take_plan(signum, frame):
    with open(PLAN_FILE) as file:
        PLAN[:] = json.load(file)
    counts.clear()
    failed[:] = bytes(len(failed))
    os.write(2, b'plan taken\\n')

if PLAN_FILE:
    signal.signal(signal.SIGUSR1, take_plan)

class FaultySocket(socket.socket):
    pass

def add_method(call):
    def method(self, *arguments):
        if self.family != getattr(socket, 'AF_UNIX', None):     # asyncio has one for itself
            fault(call)
        try:
            return getattr(super(FaultySocket, self), call)(*arguments)
        except BlockingIOError:
            counts[call] = counts.get(call, 1) - 1      # a call of a loop that polls: not counted
            raise
    setattr(FaultySocket, call, method)

for each in 'accept', 'recv', 'send', 'sendall', 'setsockopt', 'getpeername', 'getsockname':
    add_method(each)
socket.socket = FaultySocket

class FaultyPoller:
    def __init__(self, make):
        self.real = make()
        self.register, self.modify, self.poll = (
            faulty(call, getattr(self.real, call)) for call in ('register', 'modify', 'poll'))
    def __getattr__(self, name):
        return getattr(self.real, name)

for kind in 'Epoll', 'Poll':
    cls = getattr(selectors, kind + 'Selector', None)
    if cls:
        cls._selector_cls = lambda self, make=cls._selector_cls: FaultyPoller(make)
select.select = faulty('select', select.select)
if os.name == 'posix':
    selectors.SelectSelector._select = staticmethod(select.select)
    os.fork = faulty('fork', os.fork)
start_thread = threading.Thread.start
def start(self):
    try:
        fault('thread')
    except OSError as error:
        raise RuntimeError("can't start new thread")
    start_thread(self)
threading.Thread.start = start
'''
# The same for io_uring: a coroutine may fail, its completion may say so, or the system call.
RING_FAULTS = '''
if 'IoUringLoop' in globals():
    def add_faulty(name, call):
        real = getattr(IoUringLoop, name)
        async def method(self, *arguments):
            if call == 'accept':
                fault(call)
            result = await real(self, *arguments)
            if call != 'accept':
                fault(call)
            return result
        setattr(IoUringLoop, name, method)
    for name, call in ('sock_accept', 'accept'), ('sock_recv', 'recv'), ('sock_sendall', 'send'):
        add_faulty(name, call)
    real_completions, real_syscall = IoUringLoop.completions, IoUringLoop.checked_syscall
    real_close = IoUringLoop.close
    def completions(self):
        for task, res, flags in real_completions(self):
            try:
                fault('completion')
            except (OSError, MemoryError) as error:
                if task == 0 and res >= 0:
                    os.close(res)       # an accepted connection
                res = -(getattr(error, 'errno', 0) or 12)
            yield task, res, flags
    def checked_syscall(self, number, *arguments):
        if number == 426:
            fault('enter')
        return real_syscall(self, number, *arguments)
    def close(self):
        for each in PLAN:
            if each[0] == 'enter while closing':
                each[0] = 'enter'
        counts.clear()
        real_close(self)
    IoUringLoop.completions, IoUringLoop.checked_syscall = completions, checked_syscall
    IoUringLoop.close = close

'''


def faulty_copy(case, script, *plan, file=None):
    """Return the path of a copy of SCRIPT in which calls fail as PLAN says, or as FILE says once
    SIGUSR1 has come (see FAULTS)."""
    main = "if __name__ == '__main__':\n"
    source = FAULTS.format(plan=[list(each) for each in plan], file=file)
    return patched_copy(case, script, (main, RING_FAULTS + main), before=source)


class ServerTest(unittest.TestCase):
    """Base of all tests with servers: it starts them and connects, and cleans up."""
    timeout = TIMEOUT

    def start_server(self, script, *arguments, **options):
        server = Server(script, *arguments, **options)
        self.addCleanup(server.stop)
        return server

    def start_all(self, servers, make=lambda case, script: script, **options):
        """Start a server for each (script, *arguments); MAKE may change the script."""
        return [self.start_server(make(self, script), *arguments, **options)
                for script, *arguments in servers]

    def connect(self, server):
        sock = connect(server, self.timeout)
        self.addCleanup(sock.close)
        return sock

    def assert_serves(self, server):
        with connect(server, self.timeout) as sock:
            self.assertEqual(ask(sock, b'still there?'), b'STILL THERE?')

    def assert_said(self, server, pattern):
        """The server has said so, before or after `listening`, or it does now."""
        if not re.search(pattern, '\n'.join(server.seen), re.M):
            server.expect(pattern, self.timeout)

    def assert_waits(self, sock):
        sock.settimeout(0.3)
        with self.assertRaises(socket.timeout):
            sock.recv(1)
        sock.settimeout(TIMEOUT)

    def assert_stops(self, server, number, seconds=3):
        """The signal NUMBER ends the server soon, with status 0; return its remaining lines."""
        start = time.monotonic()
        server.process.send_signal(number)
        self.assertEqual(server.process.wait(TIMEOUT), 0, server.name)
        self.assertLess(time.monotonic() - start, seconds, server.name)
        return remaining_lines(server)


no_fork = None if hasattr(os, 'fork') else 'this platform has no os.fork'
no_io_uring = refused_io_uring()
# every way to run a server, for the tests that are not in the contract
VARIANTS = [
    ['blocking_server.py'], ['blocking_server.py', '--mode', 'serial'],
    ['blocking_server.py', '--mode', 'pool'], ['nonblocking_server.py', '--pause', '0.001'],
    ['select_server.py'], ['selectors_server.py', '--suffix='],
    ['async_server.py', '--engine', 'asyncio'], ['socketserver_server.py']]
if not no_fork:
    VARIANTS += [['blocking_server.py', '--mode', 'process'],
                 ['socketserver_server.py', '--mode', 'process']]
if not no_io_uring:
    VARIANTS += [['async_server.py', '--engine', 'io_uring']]


# ---- the contract

class Contract:
    """What every server must hold, under use and abuse alike. Subclasses say which server, and
    what its model allows."""
    script, arguments = '', ()
    parallel = True         # a client that only sits there keeps nobody waiting
    loop = False            # one thread for all: a slow answer keeps everybody waiting
    polls = False           # burns a processor while idle
    forks = False           # each client has a process of its own
    quiet = 0.05            # seconds after which a connection that takes nothing more is blocked
    idle_seconds = 0.07     # for so long we look whether it spins
    crowd_seconds = 6       # for so long 500 clients may wait

    @classmethod
    def setUpClass(cls):
        client.file_limit()
        cls.server = Server(cls.script, *cls.arguments)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def start_own(self, *arguments, **options):
        return self.start_server(self.script, *self.arguments, *arguments, **options)

    def start_faulty(self, *plan):
        return self.start_server(faulty_copy(self, self.script, *plan), *self.arguments)

    def assert_idle(self, server):
        """The server uses next to no CPU, though something might keep it busy. (Linux only:
        elsewhere we cannot measure it finely enough.)"""
        if LINUX and not self.polls:
            before = client.cpu_seconds(server.pid)
            end = time.monotonic() + self.idle_seconds
            while time.monotonic() < end:
                time.sleep(0.02)
                used = client.cpu_seconds(server.pid) - before
                self.assertLess(used, 0.05, 'it spins')

    # the conversation

    def test_answers_in_upper_case(self):
        every = bytes(range(256)) + 'gro\xdf, \u5927\u5199 and \u0131'.encode()
        sock = self.connect(self.server)
        self.assertEqual(ask(sock, every), every.upper())
        self.assertEqual(ask(sock, b'\0'), b'\0')

    def test_answers_at_once(self):
        """No newline is waited for: the notes' own clients send none, and read once."""
        sock = self.connect(self.server)
        for message in b'hello', b'a', '\xfcn\xef'.encode(), b'GET / HTTP/1.0\r\n\r\n':
            sock.sendall(message)
            self.assertEqual(sock.recv(1024), message.upper())

    def test_every_byte_in_order(self):
        """2 MB in pieces of all sizes, then half-close: all comes back, and then the end."""
        data = random_bytes(2 << 20)
        sock = self.connect(self.server)

        def send():
            start, sizes = 0, random.Random(4)
            while start < len(data):
                size = sizes.choice([1, 10, 1000, 100000])
                sock.sendall(data[start:start + size])
                start += size
            sock.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send)
        sender.start()
        received = receive_all(sock)
        sender.join()
        self.assertEqual(len(received), len(data))
        self.assertEqual(received, data.upper())

    def test_half_close_while_much_is_unsent(self):
        """The client sends, half-closes, and begins to read only then: nothing may be lost."""
        sock = self.connect(self.server)
        sent = send_until_blocked(sock, self.quiet)

        def end():
            sock.sendall(b'the end')
            sock.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=end)
        sender.start()
        received = receive_all(sock)
        sender.join()
        self.assertEqual(len(received), len(sent) + 7)
        self.assertEqual(received, sent.upper() + b'THE END')

    # abuse

    def test_resets(self):
        """A client that resets, with an answer under way or without, costs only its own
        connection, and the server says nothing about it."""
        server = self.start_own()
        for message in 2 * [b'', b'x', b'x' * 300000]:      # a reset may arrive late: twice
            with self.connect(server) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                if message:
                    sock.setblocking(False)
                    sock.send(message)
            self.assert_serves(server)
        server.stop()
        if POSIX:
            self.assertEqual(remaining_lines(server), ['stopped'])

    def test_reset_while_blocked(self):
        with self.connect(self.server) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            send_until_blocked(sock, self.quiet)
        self.assert_serves(self.server)
        self.assert_idle(self.server)

    def test_connects_and_leaves(self):
        for _ in range(50):
            self.connect(self.server).close()
        self.assert_serves(self.server)

    def test_stalled_reader(self):
        """A client that sends and never reads is throttled. Others are served, nothing spins, and
        when it reads at last it gets every byte."""
        server = self.start_own()
        self.assert_serves(server)
        before = client.memory_bytes(server.pid) if LINUX else 0
        sock = self.connect(server)
        sent = send_until_blocked(sock, self.quiet)
        if LINUX:
            grown = client.memory_bytes(server.pid) - before
            self.assertLess(grown, 16 << 20, 'it stores what is not read')
        if self.parallel:
            self.assert_serves(server)
        self.assert_idle(server)
        self.assertEqual(receive(sock, len(sent)), sent.upper())

    def test_500_at_once(self):
        """500 connect while the server cannot look, and each says something: all are answered."""
        number, sel = 500, selectors.DefaultSelector()
        self.addCleanup(sel.close)
        if isinstance(sel, selectors.SelectSelector):
            number = 480        # Windows: our own select holds 512
        if POSIX:
            self.server.process.send_signal(signal.SIGSTOP)
        try:
            for each in range(number):
                sock = socket.socket()
                self.addCleanup(sock.close)
                sock.setblocking(False)
                sock.connect_ex(self.server.address)
                sel.register(sock, selectors.EVENT_WRITE, b'number %d' % each)
        finally:
            if POSIX:
                self.server.process.send_signal(signal.SIGCONT)
        end = time.monotonic() + self.crowd_seconds
        while sel.get_map() and time.monotonic() < end:
            for key, mask in sel.select(0.1):
                if mask & selectors.EVENT_WRITE:
                    key.fileobj.send(key.data)
                    sel.modify(key.fileobj, selectors.EVENT_READ, key.data)
                else:
                    self.assertEqual(key.fileobj.recv(100), key.data.upper())
                    sel.unregister(key.fileobj)
                    key.fileobj.close()
        self.assertEqual(len(sel.get_map()), 0, 'so many had no answer')

    @unittest.skipUnless(POSIX, 'Windows has no limit of open files')
    def test_out_of_descriptors(self):
        """Connected clients are served, one line says so, nothing spins, and a client that waits
        is taken when another leaves."""
        if self.forks or not self.parallel:
            self.skipTest('this model does not hold many descriptors')
        server = self.start_own(**with_shell('ulimit -n 40; exec "$@"'))
        socks = [self.connect(server) for _ in range(60)]
        server.expect(r'^cannot accept \(Too many open files\): new clients wait; '
                      'connected ones are still served$', self.timeout)
        self.assertEqual(ask(socks[0]), b'HELLO')
        self.assert_idle(server)
        self.assertEqual(ask(socks[0]), b'HELLO')
        for sock in socks[:-1]:
            sock.close()
        self.assertEqual(ask(socks[-1]), b'HELLO')
        self.assert_serves(server)
        server.stop()
        self.assertEqual(remaining_lines(server), ['stopped'])      # it does not say so again

    @unittest.skipUnless(POSIX, 'there the errors have other numbers')
    def test_accept_fails_with_nobody_connected(self):
        """No room, and no client that could leave: it says so once, sleeps, and tries again."""
        server = self.start_faulty(['accept', 1, 2000 if self.polls else 2, errno.EMFILE])
        sock = self.connect(server)
        self.assert_said(server, r'^cannot accept \(Too many open files\)')
        self.assert_idle(server)
        self.assertEqual(ask(sock), b'HELLO')
        server.stop()
        self.assertEqual(remaining_lines(server), ['stopped'])

    @unittest.skipUnless(POSIX, 'there the errors have other numbers')
    def test_accept_fails_for_ever(self):
        """A firewall's EPERM, say: a connected client is served, and nothing spins."""
        server = self.start_faulty(['accept', 2, 1 << 60, errno.EPERM])
        first = self.connect(server)
        self.assertEqual(ask(first), b'HELLO')
        self.connect(server)
        if not self.parallel and 'pool' not in self.arguments:
            first.close()
        server.expect(r'^cannot accept \(Operation not permitted\)', self.timeout)
        self.assert_idle(server)
        if self.parallel:
            self.assertEqual(ask(first), b'HELLO')
        server.stop()
        self.assertEqual(remaining_lines(server), ['stopped'])

    @unittest.skipUnless(POSIX, 'there the errors have other numbers')
    def test_not_yet(self):
        """recv and send may fail with EAGAIN though select has said "ready" (select(2), BUGS)."""
        if not self.loop or 'io_uring' in self.arguments:
            self.skipTest('this model has no non-blocking calls')
        again = errno.EAGAIN
        server = self.start_faulty(['recv', 1, 1, again], ['send', 1, 1, again],
                                   ['recv', 4, 1, again], ['send', 3, 1, again])
        first, second = self.connect(server), self.connect(server)
        for _ in range(3):
            self.assertEqual(ask(first) + ask(second), b'HELLOHELLO')

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_no_leaks(self):
        """After many have come and gone no descriptor, thread or process is left of them."""
        pid = self.server.pid

        def held():
            return [count_descriptors(pid), client.thread_count(pid), len(client.process_tree(pid))]

        def all_back():
            return all(now <= then for now, then in zip(held(), before))
        self.assert_serves(self.server)
        wait_until(lambda: held()[2] == 1, 3)
        before = held()
        for number in range(150):
            with self.connect(self.server) as sock:
                if number % 3:
                    sock.sendall(b'x')
                if number % 3 == 2:
                    self.assertEqual(sock.recv(1), b'X')
        self.assert_serves(self.server)
        self.assertTrue(wait_until(all_back, self.timeout), f'{before} before, {held()} after')

    # start and stop

    def test_idle(self):
        """While nobody speaks a server sleeps. (Polling: see NonblockingModelTest.)"""
        self.connect(self.server)
        self.assert_idle(self.server)

    def stopped_by(self, number, slow):
        options = {} if POSIX else {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP}
        server = self.start_own(slow, '20', **options)
        idle, busy, stalled = (self.connect(server) for _ in range(3))
        if self.parallel:
            busy.sendall(b'compute')
        stalled.setblocking(False)
        stalled.send(b'x' * 10000)
        if self.forks and LINUX:
            self.assertTrue(wait_until(lambda: len(client.process_tree(server.pid)) == 4))
        pids = client.process_tree(server.pid)[1:] if LINUX else []
        start = time.monotonic()
        try:
            server.process.send_signal(number)
        except OSError as error:
            self.skipTest(f'no Ctrl-Break can be sent here: {error}')
        if POSIX:
            server.process.send_signal(signal.SIGTERM)      # somebody is impatient
        self.assertEqual(server.process.wait(self.timeout), 0)
        self.assertLess(time.monotonic() - start, 3)
        self.assertEqual(remaining_lines(server), ['stopped'])
        self.assertTrue(all_ended(pids))
        try:
            self.assertEqual(idle.recv(1), b'')
        except ConnectionResetError:
            pass        # it had not been accepted yet

    def test_ctrl_c(self):
        self.stopped_by(signal.SIGINT if POSIX else signal.CTRL_BREAK_EVENT, '--work')

    @unittest.skipUnless(POSIX, 'Windows has no SIGTERM')
    def test_sigterm(self):
        self.stopped_by(signal.SIGTERM, '--delay')

    def test_starts_again_on_the_same_port(self):
        server = self.start_own()
        with self.connect(server) as sock:
            self.assertEqual(ask(sock), b'HELLO')
            server.stop()
            again = self.start_own('--port', str(server.address[1]))
            self.assertEqual(again.address, server.address)
            self.assert_serves(again)

    def test_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6) as sock:
                sock.bind(('::1', 0))
        except OSError as error:
            self.skipTest(f'no IPv6 here: {error}')
        server = self.start_own('--host', '::1')
        self.assertRegex(server.seen[-1], r'^listening on \[::1\]:\d+ \(.*; Ctrl-C stops\)$')
        self.assert_serves(server)

    def test_first_line(self):
        line = self.server.seen[0]
        self.assertRegex(line, r'^listening on 127\.0\.0\.1:\d+ \([ -~]+; Ctrl-C stops\)$')

    # slow answers

    def time_of_three(self, *arguments):
        """Return how long it takes until three clients that ask at the same time are answered."""
        server = self.start_own(*arguments)
        socks = [self.connect(server) for _ in range(3)]
        start = time.monotonic()
        for sock in socks:
            sock.sendall(b'hello')
        for sock in socks:
            self.assertEqual(receive(sock, 5), b'HELLO')
            sock.close()
        return time.monotonic() - start

    def test_waiting_answer(self):
        """An answer that waits holds up everybody in a loop, and nobody that has a thread."""
        if self.loop or not self.parallel and 'pool' not in self.arguments:
            self.assertGreater(self.time_of_three('--delay', '0.05'), 0.14)
        else:
            self.assertLess(self.time_of_three('--delay', '0.15'), 0.42)

    def test_computing_answer(self):
        """An answer that computes holds up everybody, in threads too: one holds the GIL. Only
        processes compute at the same time."""
        if not self.forks and getattr(sys, '_is_gil_enabled', lambda: True)():
            self.assertGreater(self.time_of_three('--work', '0.03'), 0.085)
        elif (os.cpu_count() or 1) > 1:
            for attempt in range(3):        # on a busy machine we may be unlucky
                if self.time_of_three('--work', '0.2') < 0.5:
                    return
            if POSIX and os.getloadavg()[0] > 1:
                self.skipTest('other programs keep this machine busy')
            self.fail('they do not compute at the same time')


def add_contract_test(name, script, *arguments, without=None, **traits):
    """Make a test class of the contract for one server and mode; WITHOUT is why this platform
    does not have it."""
    members = {'script': script, 'arguments': arguments, **traits}
    test = type(name, (Contract, ServerTest), members)
    globals()[name] = unittest.skipIf(without, without)(test)


add_contract_test('BlockingSerialTest', 'blocking_server.py', '--mode', 'serial', parallel=False)
add_contract_test('BlockingThreadTest', 'blocking_server.py')
add_contract_test('BlockingProcessTest', 'blocking_server.py', '--mode', 'process', forks=True,
                  without=no_fork)
add_contract_test('BlockingPoolTest', 'blocking_server.py', '--mode', 'pool', '--pool-size', '3',
                  parallel=False)
add_contract_test('NonblockingTest', 'nonblocking_server.py', loop=True, polls=True)
add_contract_test('NonblockingPauseTest', 'nonblocking_server.py', '--pause', '0.001', loop=True)
add_contract_test('SelectTest', 'select_server.py', loop=True)
for kind in 'epoll', 'kqueue', 'devpoll', 'poll', 'select':
    add_contract_test(f'Selectors{kind.title()}Test', 'selectors_server.py', '--suffix=',
                      '--selector', kind, loop=True,
                      without=None if hasattr(select, kind) else f'this platform has no {kind}')
add_contract_test('AsyncAsyncioTest', 'async_server.py', '--engine', 'asyncio', loop=True)
add_contract_test('AsyncIoUringTest', 'async_server.py', '--engine', 'io_uring', loop=True,
                  without=no_io_uring)
add_contract_test('SocketserverSerialTest', 'socketserver_server.py', '--mode', 'serial',
                  parallel=False)
add_contract_test('SocketserverThreadTest', 'socketserver_server.py')
add_contract_test('SocketserverProcessTest', 'socketserver_server.py', '--mode', 'process',
                  forks=True, without=no_fork)


TINY_RING = ('SQ_ENTRIES, CQ_ENTRIES, BUFFERS = 1024, 4096, 1024',
             'SQ_ENTRIES, CQ_ENTRIES, BUFFERS = 4, 8, 2')


class AsyncTinyRingTest(Contract, ServerTest):
    """The whole contract on a ring so small that every queue overflows and that every buffer is
    in use all the time."""
    loop = True

    @classmethod
    def setUpClass(cls):
        if no_io_uring:
            raise unittest.SkipTest(no_io_uring)
        cls.assertIn = unittest.TestCase().assertIn
        cls.script = patched_copy(cls, 'async_server.py', TINY_RING)
        cls.arguments = '--engine', 'io_uring'
        super().setUpClass()


# ---- what is particular to each model

class BlockingModelTest(ServerTest):

    def test_serial_second_client_waits_until_the_first_leaves(self):
        for script in 'blocking_server.py', 'socketserver_server.py':
            server = self.start_server(script, '--mode', 'serial')
            first, second = self.connect(server), self.connect(server)
            self.assertEqual(ask(first), b'HELLO')
            second.sendall(b'me?')
            self.assert_waits(second)
            first.close()
            self.assertEqual(receive(second, 3), b'ME?')

    def test_pool_of_n_client_n_plus_1_waits(self):
        server = self.start_server('blocking_server.py', '--mode', 'pool', '--pool-size', '3')
        served = [self.connect(server) for _ in range(3)]
        for sock in served:
            self.assertEqual(ask(sock), b'HELLO')
        fourth = self.connect(server)
        fourth.sendall(b'me?')
        self.assert_waits(fourth)
        served[1].close()
        self.assertEqual(receive(fourth, 3), b'ME?')

    @unittest.skipUnless(POSIX, 'on Windows the first thread is the server itself')
    def test_no_thread_or_process_for_a_client(self):
        """That client is refused with a line; those connected, and others later, are served."""
        for script in 'blocking_server.py', 'socketserver_server.py':
            for mode, call, words in (('thread', 'thread', "can't start new thread"),
                                      ('process', 'fork', 'Resource temporarily unavailable')):
                path = faulty_copy(self, script, [call, 2, 1, errno.EAGAIN])
                server = self.start_server(path, '--mode', mode)
                first, second, third = (self.connect(server) for _ in range(3))
                self.assertEqual(ask(first), b'HELLO')
                server.expect(rf'^refused 127\.0\.0\.1:\d+: .*{words}')
                self.assertEqual(second.recv(1), b'')
                self.assertEqual(ask(third) + ask(first), b'HELLOHELLO')

    @unittest.skipUnless(POSIX, 'on Windows the first thread is the server itself')
    def test_no_threads_for_the_pool(self):
        path = faulty_copy(self, 'blocking_server.py', ['thread', 3, 9, errno.EAGAIN])
        ended = run(path, '--mode', 'pool', '--port', '0')
        self.assertEqual(ended.returncode, 1)
        self.assertRegex(ended.stderr.decode(), r"^no pool of 4 threads here \(can't start new "
                                                r"thread\); take a smaller --pool-size\n$")


class NonblockingModelTest(ServerTest):

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_polling_burns_a_core_and_pause_tames_it(self):
        def used():
            return client.cpu_seconds(server.pid) - before
        for pause in '0', '0.05':
            server = self.start_server('nonblocking_server.py', '--pause', pause)
            self.connect(server)
            before = client.cpu_seconds(server.pid)
            if pause == '0':
                self.assertTrue(wait_until(lambda: used() > 0.15))
            else:
                time.sleep(0.3)
                self.assertLess(used(), 0.1)

    def test_pause_answers_late(self):
        sock = self.connect(self.start_server('nonblocking_server.py', '--pause', '0.1'))
        ask(sock)
        start = time.monotonic()
        for _ in range(3):
            ask(sock)
        self.assertGreater(time.monotonic() - start, 0.2)


class NonblockingSocketsTest(ServerTest):

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_every_socket_of_a_loop_is_non_blocking(self):
        """On Linux a client does not inherit that from the listener. A blocking one could stop
        the whole loop."""
        for script in 'nonblocking_server.py', 'select_server.py', 'selectors_server.py':
            server = self.start_server(script, '--port', '0')
            ask(self.connect(server))
            modes = []
            for fd in os.listdir(f'/proc/{server.pid}/fd'):
                if os.readlink(f'/proc/{server.pid}/fd/{fd}').startswith('socket:'):
                    with open(f'/proc/{server.pid}/fdinfo/{fd}') as file:
                        flags = int(re.search(r'flags:\s+(\d+)', file.read())[1], 8)
                    modes.append(bool(flags & os.O_NONBLOCK))
            self.assertEqual(modes, [True, True], script)


class SelectorsModelTest(ServerTest):

    def test_suffix_counts_the_reads(self):
        """TCP has no messages: what was sent in three is read in one, or the other way round."""
        server = self.start_server('selectors_server.py')
        sock = self.connect(server)
        sock.sendall(b'hello')
        self.assertEqual(receive(sock, 8), b'HELLO_SB')
        sock.sendall(b'a' * 100000)
        sock.shutdown(socket.SHUT_WR)
        received = receive_all(sock)
        self.assertEqual(received.replace(b'_SB', b''), b'A' * 100000)
        self.assertGreater(received.count(b'_SB'), 100000 // 70000)
        self.assertTrue(received.endswith(b'_SB'))

    def test_own_suffix(self):
        sock = self.connect(self.start_server('selectors_server.py', '--suffix', ' <eh>'))
        sock.sendall(b'hi')
        self.assertEqual(receive(sock, 7), b'HI <eh>')

    def test_a_selector_that_is_not_here(self):
        for kind in 'epoll', 'kqueue', 'devpoll', 'poll':
            if not hasattr(select, kind):
                ended = run('selectors_server.py', '--selector', kind)
                words = f'this platform has no {kind}; take --selector default'
                self.assertEqual(ended.returncode, 1)
                self.assertEqual(ended.stderr.decode().strip(), words)


class SelectLimitTest(ServerTest):

    @unittest.skipUnless(POSIX, 'on Windows it counts sockets: see test_512_sockets')
    def test_descriptors_from_1024_on(self):
        """A client that select cannot watch is refused with a line that says why."""
        hold = '''
            import os, resource
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            limit = min(1100, hard) if hard > 0 else 1100
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            while os.open(os.devnull, os.O_RDONLY) < 1019:
                pass
            '''
        if client.file_limit() < 1100:
            self.skipTest('the hard limit of open files is below 1100')
        for script, *arguments in (['select_server.py'],
                                   ['selectors_server.py', '--selector', 'select', '--suffix=']):
            server = self.start_server(patched_copy(self, script, before=hold), *arguments)
            socks = [self.connect(server) for _ in range(6)]
            server.expect(r'^refused 127\.0\.0\.1:\d+: .*cannot watch it beside the others '
                          r'\(filedescriptor out of range')
            self.assertEqual(ask(socks[0]), b'HELLO')
            self.assertEqual(socks[-1].recv(1), b'')
            socks[0].close()
            self.assertEqual(ask(socks[1]), b'HELLO')
            self.assertEqual(ask(self.connect(server)), b'HELLO')

    @unittest.skipIf(POSIX, 'on POSIX it looks at the number of the descriptor')
    def test_512_sockets(self):
        server = self.start_server('select_server.py')
        socks = [self.connect(server) for _ in range(520)]
        server.expect(r'^refused 127\.0\.0\.1:\d+: .*cannot watch it beside the others '
                      r'\(too many file descriptors')
        self.assertEqual(ask(socks[0]), b'HELLO')


class AsyncModelTest(ServerTest):
    """Engines, and the ring under strain."""
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

    @unittest.skipUnless(LINUX, 'io_uring is of Linux')
    def test_kernel_refuses_io_uring(self):
        """A seccomp filter, as in a container: auto falls back and says why, and
        --engine io_uring is an error in words."""
        for number, reason in (
                (errno.EPERM, 'refused, by a container or'),
                (errno.ENOSYS, 'this kernel has none'), (errno.EINVAL, 'needs Linux 6.0'),
                (errno.ENOMEM, r'too little locked memory is allowed \(ulimit -l\)')):
            path = patched_copy(self, 'async_server.py', before=self.REFUSE.format(number))
            try:
                server = self.start_server(path)
            except RuntimeError as error:
                self.skipTest(str(error))
            self.assertRegex(server.seen[0], r'\(asynchronous, asyncio on a selector: readiness; '
                                             f'no io_uring: {reason}')
            self.assertEqual(ask(self.connect(server)), b'HELLO')
            ended = run(path, '--engine', 'io_uring', '--port', '0')
            self.assertEqual(ended.returncode, 1)
            self.assertRegex(ended.stderr.decode(), f'^there is no io_uring here: {reason}.*; '
                                                    r'take --engine asyncio\n$')

    @unittest.skipIf(LINUX, 'here there may be io_uring')
    def test_platform_without_io_uring(self):
        server = self.start_server('async_server.py')
        self.assertIn('no io_uring: it needs Linux', server.seen[0])
        self.assertEqual(run('async_server.py', '--engine', 'io_uring').returncode, 1)

    @unittest.skipIf(no_io_uring, no_io_uring)
    def test_auto_takes_io_uring(self):
        server = self.start_server('async_server.py')
        self.assertIn('(asynchronous, io_uring: completion; Ctrl-C stops)', server.seen[0])

    @unittest.skipIf(no_io_uring, no_io_uring)
    def test_ctrl_c_with_thousands_in_flight(self):
        number = min(4000, client.file_limit() - 100)
        server = self.start_server('async_server.py', '--engine', 'io_uring')
        idle, errors = client.open_idle(client.resolve(*server.address), number)
        self.addCleanup(client.close_idle, idle)
        self.assertTrue(client.answered(idle[-1:], TIMEOUT))
        self.assert_stops(server, signal.SIGINT, 2)

    @unittest.skipIf(no_io_uring, no_io_uring)
    def test_all_send_while_it_computes(self):
        """More completions than the queue holds, while one answer is computed: none is lost."""
        crowd = min(5000, client.file_limit() - 100)
        for number, *tiny in [crowd], [200, TINY_RING]:
            path = patched_copy(self, 'async_server.py', *tiny, (
                '        if args.work:\n', "        if args.work and data == b'compute':\n"))
            server = self.start_server(path, '--engine', 'io_uring', '--work', '0.5')
            idle, errors = client.open_idle(client.resolve(*server.address), number)
            self.addCleanup(client.close_idle, idle)
            self.assertTrue(client.answered(idle[-1:], TIMEOUT))
            first = self.connect(server)
            self.assertEqual(ask(first), b'HELLO')
            first.sendall(b'compute')
            for each, sock in enumerate(idle):
                sock.send(b'client %d' % each)
            for each, sock in enumerate(idle):
                message = b'CLIENT %d' % each
                self.assertEqual(receive(sock, len(message)), message)
            self.assertEqual(receive(first, 7), b'COMPUTE')

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_who_copies_while_the_process_computes(self):
        """Section 4 of the notes: with io_uring the kernel takes the bytes from the socket while
        the process computes for another client. In the other models they stay there."""
        for script, *arguments in ([] if no_io_uring else [['async_server.py']]) + [
                ['async_server.py', '--engine', 'asyncio'], ['select_server.py'],
                ['selectors_server.py'], ['nonblocking_server.py']]:
            for attempt in range(4):    # on a busy machine the computing may end before we look
                left = self.left_in_socket(script, *arguments)
                if left is not None:
                    break
            expected = 0 if script == 'async_server.py' and not arguments else 6
            self.assertEqual(left, expected, f'{script} {arguments}')

    def left_in_socket(self, script, *arguments):
        """Return how many of 6 bytes are in the server's socket while it computes."""
        server = self.start_server(script, *arguments, '--trace', '--work', '0.8')
        first, second = self.connect(server), self.connect(server)
        if script == 'async_server.py':
            server.expect('#2 +recv +(queued|asked) ')
        else:
            server.expect('#2 +accept .* joined')
        time.sleep(0.05)        # until the process waits
        before = client.cpu_seconds(server.pid)
        first.sendall(b'compute')
        server.expect("#1 +recv .*b'compute'")
        wait_until(lambda: client.cpu_seconds(server.pid) - before > 0.05)
        second.sendall(b'second')
        time.sleep(0.1)
        left = client.receive_queue(server.address, second.getsockname())
        computes = not select.select([first], [], [], 0)[0]
        server.stop()
        return left if computes else None


# ---- the operator

class OperatorTest(ServerTest):
    """socketserver_server.py as in the notes: an operator types the answers."""
    MODES = ['thread', 'serial'] + ['process'] * (not no_fork)

    def start_operator(self, *arguments):
        server = self.start_server('socketserver_server.py', '--reply', 'operator', *arguments,
                                   stdin=subprocess.PIPE)
        self.addCleanup(server.process.stdin.close)
        self.assertIn('an operator answers', server.seen[-1])
        return server

    def type_line(self, server, line):
        server.process.stdin.write(line)
        server.process.stdin.flush()

    def test_operator_answers(self):
        for mode in self.MODES:
            server = self.start_operator('--mode', mode)
            sock = self.connect(server)
            sock.sendall('hi \x1b[2J \u4e16'.encode())
            said = server.expect('127.0.0.1:[0-9]+ says (.*)')[1]
            self.assertIn(said, [repr('hi \x1b[2J \u4e16'), escaped_repr()])
            self.type_line(server, b'\n  \nhello yourself\n')
            self.assertEqual(receive(sock, 14), b'hello yourself')
            sock.sendall(b'exit')
            self.assertEqual(sock.recv(1), b'')

    def test_one_prompt_at_a_time(self):
        for mode in self.MODES:
            if mode == 'serial':
                continue
            server = self.start_operator('--mode', mode)
            socks = {}
            for _ in range(3):
                sock = self.connect(server)
                socks['%s:%d' % sock.getsockname()] = sock
                sock.sendall(b'hi')
            for number in range(3):
                asked = server.expect(r'(\S+) says')[1]
                self.assertEqual(select.select(list(socks.values()), [], [], 0.05)[0], [])
                self.assertFalse([line for line in server.seen if line.count('says') > 1])
                self.type_line(server, b'answer %d\n' % number)
                self.assertEqual(receive(socks.pop(asked), 8), b'answer %d' % number)

    def test_operator_leaves(self):
        for mode in self.MODES:
            server = self.start_operator('--mode', mode)
            sock = self.connect(server)
            sock.sendall(b'hi')
            server.expect('says')
            server.process.stdin.close()
            server.expect('the operator has left')
            self.assertEqual(receive(sock, 2), b'HI')
            self.assertEqual(ask(sock), b'HELLO')

    def test_client_says_nothing_and_leaves(self):
        """The notes' listing would ask the operator for ever."""
        server = self.start_operator()
        self.connect(server).close()
        sock = self.connect(server)
        sock.sendall(b'hi')
        server.expect('says')
        self.type_line(server, b'still here\n')
        self.assertEqual(receive(sock, 10), b'still here')
        server.stop()
        self.assertFalse([line for line in remaining_lines(server) if "says ''" in line])

    @unittest.skipUnless(POSIX, 'on Windows select takes sockets only')
    def test_client_leaves_while_the_operator_is_asked(self):
        """The operator is told, and the next client is asked for at once."""
        for mode in self.MODES:
            server = self.start_operator('--mode', mode)
            first, second = self.connect(server), self.connect(server)
            first.sendall(b'one')
            server.expect("says 'one'")
            second.sendall(b'two')
            first.close()
            server.expect(r'^127\.0\.0\.1:\d+ has left: no answer is needed$')
            server.expect("says 'two'")
            self.type_line(server, b'for the second\n')
            self.assertEqual(receive(second, 14), b'for the second')

    def test_operator_with_a_trace(self):
        """The trace of recv does not hinder the looking whether the client is still there."""
        for mode in self.MODES:
            server = self.start_operator('--mode', mode, '--trace')
            sock = self.connect(server)
            sock.sendall(b'hi')
            self.assert_said(server, "#1 +recv .*b'hi'")     # on standard error
            self.assert_said(server, "says 'hi'$")          # on standard output
            self.type_line(server, b'hello yourself\n')
            self.assertEqual(receive(sock, 14), b'hello yourself')
            server.expect("#1 +sendall .*b'hello yourself'")

    @unittest.skipUnless(POSIX, 'on Windows select takes sockets only')
    def test_no_prompt_for_clients_that_have_left(self):
        """12 clients have sent something and left: the operator is asked for the real one only."""
        for mode in self.MODES[::2]:
            server = self.start_operator('--mode', mode)
            first = self.connect(server)
            first.sendall(b'first')
            server.expect('says')
            for _ in range(12):
                with self.connect(server) as sock:
                    sock.sendall(b'gone')
            time.sleep(0.1)
            self.type_line(server, b'answer 1\n')
            self.assertEqual(receive(first, 8), b'answer 1')
            for _ in range(12):
                server.expect("says 'gone' and has left: it is not asked for$")
            last = self.connect(server)
            last.sendall(b'last')
            server.expect("says 'last'$")
            self.type_line(server, b'answer 2\n')
            self.assertEqual(receive(last, 8), b'answer 2')

    @unittest.skipIf(no_fork, no_fork)
    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_child_with_the_prompt_is_killed(self):
        server = self.start_operator('--mode', 'process')
        first = self.connect(server)
        first.sendall(b'one')
        server.expect("says 'one'")
        child = client.process_tree(server.pid)[1]
        second = self.connect(server)
        second.sendall(b'two')
        os.kill(child, signal.SIGKILL)
        self.assertEqual(first.recv(1), b'')
        server.expect("says 'two'")
        self.type_line(server, b'answer\n')
        self.assertEqual(receive(second, 6), b'answer')

    @unittest.skipUnless(POSIX, 'needs a shell')
    def test_operator_without_an_input(self):
        """Closed, or one that cannot be read: nobody can be asked, and it is said."""
        for command in 'exec "$@" <&-', 'exec "$@" 0>/dev/null':
            server = self.start_server('socketserver_server.py', '--reply', 'operator',
                                       **with_shell(command))
            self.assertEqual(ask(self.connect(server)), b'HELLO')
            server.expect('the operator has left: from now on')

    @unittest.skipUnless(POSIX, 'needs a pseudo-terminal')
    def test_operator_at_a_terminal(self):
        """At a terminal the operator is the default."""
        import pty
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        server = self.start_server('socketserver_server.py', stdin=slave)
        os.close(slave)
        self.assertIn('an operator answers', server.seen[0])
        sock = self.connect(server)
        sock.sendall(b'hi')
        server.expect('says')
        os.write(master, b'good day\n')
        self.assertEqual(receive(sock, 8), b'good day')


def escaped_repr():
    """What a console of an old code page can show of the operator's client."""
    return "'hi \\x1b[2J \\u4e16'"


# ---- arguments, and errors in words

class ArgumentsTest(ServerTest):

    def test_errors_in_words(self):
        """One line that names the address or the value; no traceback; status 2 for usage."""
        taken = self.start_server('select_server.py')
        port, long = str(taken.address[1]), 'x' * 70 + '.com'
        blocking, nonblocking, select_, selectors_, async_, socketserver = SERVERS
        cases = (
            (SERVERS, ['--port', port], 1,
             rf"^cannot listen on host '127\.0\.0\.1', port {port}: .+\n$"),
            ([blocking, async_], ['--port', '65536'], 2, '65536 is not between 0 and 65535'),
            ([select_], ['--port', 'http'], 2, "'http'"),
            ([select_, socketserver], ['--host', 'no.such.host.invalid'], 1,
             "^cannot listen on host 'no.such.host.invalid', .+\n$"),
            ([async_, socketserver], ['--host', '192.0.2.1'], 1,
             r"^cannot listen on host '192\.0\.2\.1', .+\n$"),
            ([nonblocking], ['--host', long], 1, '^cannot listen on host .+\n$'),
            ([blocking, selectors_], ['--work', 'nan'], 2, 'nan is not between'),
            ([nonblocking, socketserver], ['--delay', '-1'], 2, '-1 is not between'),
            ([async_], ['--nonsense'], 2, 'unrecognized arguments: --nonsense'))
        for scripts, arguments, status, words in cases:
            for script in scripts:
                with self.subTest(script=script, arguments=arguments):
                    ended = run(script, '--port', '0', *arguments)
                    self.assertEqual(ended.returncode, status)
                    self.assertRegex(ended.stderr.decode().replace('\r', ''), words)
                    self.assertNotIn('Traceback', ended.stderr.decode())
                    self.assertEqual(ended.stdout, b'')

    @unittest.skipUnless(POSIX, 'needs POSIX signals')
    def test_ctrl_c_while_a_name_is_looked_up(self):
        slow = '''
            import socket, time
            def getaddrinfo(*arguments, **options):
                print('looking', flush=True)
                time.sleep(30)
            socket.getaddrinfo = getaddrinfo
            '''
        processes = []
        for script in SERVERS:
            path = patched_copy(self, script, before=slow)
            processes.append(subprocess.Popen(
                [*PYTHON, path], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            self.addCleanup(processes[-1].kill)
        for process in processes:
            self.assertEqual(process.stdout.readline(), b'looking\n')
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.communicate(timeout=TIMEOUT), (b'', b''))
            self.assertEqual(process.returncode, 1)

    def test_help_shows_the_docstring(self):
        """In ASCII, which any console can print, and in 80 columns."""
        for script in SERVERS + ['client.py']:
            doc = ast.get_docstring(ast.parse(read_source(script)), clean=False)
            ended = run(script, '--help', env={**os.environ, 'COLUMNS': '80'})
            shown = ended.stdout.decode('ascii').replace('\r', '')
            self.assertIn(doc.strip(), shown)
            for line in shown.splitlines():
                self.assertLessEqual(len(line), 80, f'{script}: {line}')

    @unittest.skipUnless(POSIX, 'needs POSIX signals')
    def test_nobody_reads_the_output(self):
        """`python select_server.py | head -1`: the server goes on, and stops without a word."""
        for script in SERVERS:
            process = subprocess.Popen(
                [*PYTHON, os.path.join(FOLDER, script), '--port', '0'],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.addCleanup(process.kill)
            with process.stderr:
                with process.stdout:
                    port = re.search(rb':(\d+) ', process.stdout.readline())[1]
                with socket.create_connection(('127.0.0.1', int(port)), TIMEOUT) as sock:
                    self.assertEqual(ask(sock), b'HELLO')
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.stderr.read(), b'')
            self.assertEqual(process.wait(TIMEOUT), 0)


# ---- the form of the scripts

class SourceTest(unittest.TestCase):

    def test_what_all_servers_share_is_the_same(self):
        """So that a diff of two shows the model and nothing else."""
        head = '# ---- the same in every server\n'
        shared = {read_source(script).partition(head)[2] for script in SERVERS}
        self.assertEqual(len(shared), 1)
        self.assertIn('def run(', shared.pop())

    def test_open_listener_is_the_same(self):
        """In all but socketserver_server.py, where the class does it."""
        found = [re.search(r'^def open_listener.*?\n\n\n', read_source(script), re.M | re.S)[0]
                 for script in SERVERS]
        self.assertEqual(len(set(found[:5])), 1)

    def test_diff_of_select_and_selectors_is_short(self):
        first, second = (read_source(script).splitlines()
                         for script in ('select_server.py', 'selectors_server.py'))
        lines = list(difflib.unified_diff(first, second, n=0, lineterm=''))[2:]
        changed = [line[0] for line in lines if line[0] in '+-']
        self.assertLessEqual(max(changed.count('+'), changed.count('-')), 90)

    def test_no_line_is_longer_than_100_columns(self):
        for script in SCRIPTS:
            for number, line in enumerate(read_source(script).splitlines(), 1):
                self.assertLessEqual(len(line), 100, f'{script}, line {number}')

    def test_heads_are_alike(self):
        """Each server has the same parts, in the same order."""
        for script in SERVERS:
            heads = re.findall('^# ---- (.*)$', read_source(script), re.M)
            alike = [head for head in heads if head in (
                'the model', 'start', '--trace', 'the same in every server')]
            self.assertEqual(alike, ['the model', 'start', '--trace', 'the same in every server'])

    def test_each_script_stands_alone(self):
        for script in SERVERS + ['client.py']:
            for node in ast.walk(ast.parse(read_source(script))):
                names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module]
                for name in names:
                    self.assertNotIn(name + '.py', SCRIPTS, f'{script} imports {name}')


# ---- a hostile world

def fill_pipe(writing):
    """Fill a pipe to the last byte. Opened again, so that only our side is non-blocking."""
    fd = os.open(f'/proc/self/fd/{writing}', os.O_WRONLY | os.O_NONBLOCK)
    for size in 4096, 1:
        try:
            while True:
                os.write(fd, b'x' * size)
        except BlockingIOError:
            pass
    os.close(fd)


@unittest.skipUnless(POSIX, 'needs POSIX signals and errors')
class StopTest(ServerTest):
    """Whatever a server does, a signal stops it; and it says nothing but `stopped`."""

    def test_signal_lost_in_a_callback(self):
        """Python drops an exception inside the callback of a weak reference: the signal that
        comes there must not be lost."""
        before = '''
            import os, signal, weakref
            class Thing:
                pass
            def interrupt(ref):
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass
            def forget(signum, frame):
                thing = Thing()
                ref = weakref.ref(thing, interrupt)
                del thing
            signal.signal(signal.SIGUSR1, forget)
            '''
        servers = self.start_all(VARIANTS, lambda case, script: patched_copy(
            case, script, before=before))
        for server in servers:
            self.assert_serves(server)
            server.process.send_signal(signal.SIGUSR1)
        start = time.monotonic()
        for server in servers:
            self.assertEqual(server.process.wait(TIMEOUT), 0, server.name)
        self.assertLess(time.monotonic() - start, 3)

    def test_signal_and_timer_at_the_same_moment(self):
        """The timer of `run` must not interrupt the end that a signal has begun."""
        before = '''
            import signal, threading
            def both(signum, frame):
                numbers = {signal.SIGINT, signal.SIGALRM}
                signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
                for number in numbers:
                    signal.pthread_kill(threading.main_thread().ident, number)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            signal.signal(signal.SIGUSR1, both)
            '''
        for server in self.start_all(VARIANTS, lambda case, script: patched_copy(
                case, script, before=before)):
            self.assert_serves(server)
            self.assertEqual(self.assert_stops(server, signal.SIGUSR1), ['stopped'])

    @unittest.skipUnless(LINUX, 'opens a pipe again, in /proc')
    def test_nobody_reads_the_trace(self):
        """`--trace 2>&1 | less`, not scrolled: the pipe is full, threads are blocked in their
        lines of trace, and yet a signal ends the server."""
        processes, addresses = [], []
        for script, *arguments in VARIANTS:
            reading, writing = os.pipe()
            self.addCleanup(os.close, reading)
            process = subprocess.Popen(
                [*PYTHON, script, *arguments, '--trace', '--port', '0'], cwd=FOLDER,
                stdin=subprocess.DEVNULL, stdout=writing, stderr=writing,
                env={**os.environ, 'PYTHONUNBUFFERED': ''})
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            said = b''
            while not re.search(rb'listening on .*\n', said):
                said += os.read(reading, 4096)
            address = '127.0.0.1', int(re.search(rb':(\d+) \(', said)[1])
            first = self.connect_to(address)
            self.assertEqual(ask(first), b'HELLO')
            fill_pipe(writing)
            os.close(writing)
            first.sendall(b'hello')
            processes.append(process)
            addresses.append(address)
        time.sleep(0.1)         # until each has blocked
        for address in addresses:
            self.connect_to(address).sendall(b'hello')
        time.sleep(0.1)
        start = time.monotonic()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            self.assertEqual(process.wait(TIMEOUT), 0, process.args)
        self.assertLess(time.monotonic() - start, 4)

    def connect_to(self, address):
        sock = socket.create_connection(address, TIMEOUT)
        self.addCleanup(sock.close)
        return sock

    def test_sighup(self):
        """The terminal was closed: server and children end. With nohup the server goes on."""
        servers = self.start_all(
            VARIANTS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
        socks = [self.connect(server) for server in servers]
        for sock in socks:
            self.assertEqual(ask(sock), b'HELLO')
        pids = [pid for server in servers for pid in client.process_tree(server.pid)]
        for server in servers:
            self.assertEqual(self.assert_stops(server, signal.SIGHUP), ['stopped'])
        self.assertTrue(not LINUX or all_ended(pids))
        server = self.start_server('select_server.py', before=['nohup'])
        server.process.send_signal(signal.SIGHUP)
        self.assert_serves(server)

    def test_stopped_under_load(self):
        """Whatever it was doing: no traceback, no "Task was destroyed"."""
        for script, *arguments in VARIANTS:
            server = self.start_server(script, *arguments)
            load = client.LoadGenerator(client.resolve(*server.address), 64)
            stopper = threading.Timer(0.1, server.process.terminate)
            stopper.start()
            try:
                load.run(50, 0.3)
            finally:
                load.close()
                stopper.join()
            self.assertEqual(server.process.wait(TIMEOUT), 0, server.name)
            self.assertEqual(remaining_lines(server), ['stopped'], server.name)

    @unittest.skipIf(no_io_uring, no_io_uring)
    def test_system_call_fails_while_the_ring_closes(self):
        for error in errno.EAGAIN, errno.EBUSY, errno.EINTR:
            path = faulty_copy(self, 'async_server.py', ['enter while closing', 1, 3, error])
            server = self.start_server(path, '--engine', 'io_uring')
            self.assertEqual(ask(self.connect(server)), b'HELLO')
            self.assertEqual(self.assert_stops(server, signal.SIGTERM), ['stopped'])

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_stopped_test_run_leaves_no_server(self):
        """A signal to this process alone, as from the stop button of an IDE."""
        numbers = signal.SIGTERM, signal.SIGINT
        processes = [subprocess.Popen(
            [sys.executable, '-m', 'unittest', 'test_all.BlockingProcessTest',
             '-k', 'waiting_answer', '-k', 'test_idle'], cwd=FOLDER,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for number in numbers]
        pids = []
        for process, number in zip(processes, numbers):
            self.addCleanup(process.kill)
            self.assertTrue(wait_until(lambda: len(client.process_tree(process.pid)) > 1))
            pids += client.process_tree(process.pid)[1:]
            process.send_signal(number)
        for process, number in zip(processes, numbers):
            process.communicate(timeout=TIMEOUT)
            self.assertEqual(process.returncode, -number)
        self.assertTrue(all_ended(pids))


@unittest.skipUnless(POSIX, 'there the errors have other numbers')
class FaultTest(ServerTest):
    """One thing goes wrong: it costs one client, or one line."""

    def test_closed_standard_error(self):
        """`2>&-`: then trace and refusals go nowhere."""
        for server in self.start_all([[script, '--trace'] for script in SERVERS],
                                     **with_shell('exec "$@" 2>&-')):
            self.assert_serves(server)
            server.stop()
            lines = server.seen + remaining_lines(server)
            self.assertEqual(len(lines), 2, lines)
            self.assertRegex(lines[0], '^listening on ')
            self.assertEqual(lines[1], 'stopped')

    def test_no_memory_for_one_answer(self):
        """MemoryError costs that client only."""
        fragile = '''
            def fragile(data):
                if data == b'huge':
                    raise MemoryError
                return data.upper()
            '''
        for server in self.start_all(VARIANTS, lambda case, script: patched_copy(
                case, script, (' else bytes.upper\n', ' else fragile\n'), before=fragile)):
            first = self.connect(server)
            if 'serial' not in server.name:
                self.assertEqual(ask(first), b'HELLO')
            with self.connect(server) as second:
                if 'serial' in server.name:
                    first.close()
                second.sendall(b'huge')
                self.assertEqual(second.recv(1), b'', server.name)
            if 'serial' not in server.name:
                self.assertEqual(ask(first), b'HELLO')
            self.assert_serves(server)
            server.stop()
            self.assertEqual(remaining_lines(server), ['stopped'], server.name)

    def test_kernel_has_no_memory_to_wait(self):
        """select and poll fail with ENOMEM: wait, and go on. It is said once."""
        faults = ['select', 3, 2, errno.ENOMEM], ['poll', 3, 2, errno.ENOMEM]
        for script, *arguments in VARIANTS:
            if script in ('blocking_server.py', 'nonblocking_server.py') or 'io_uring' in arguments:
                continue
            server = self.start_server(faulty_copy(self, script, *faults), *arguments)
            first, second = self.connect(server), self.connect(server)
            for _ in range(3):
                self.assertEqual(ask(first) + ask(second), b'HELLOHELLO')
            server.expect('cannot serve')
            server.stop()
            lines = sorted(server.seen + remaining_lines(server))
            self.assertEqual(lines[0], 'cannot serve (Cannot allocate memory): trying again')
            self.assertEqual((len(lines), lines[2]), (3, 'stopped'), server.name)

    def test_nothing_is_left_to_watch(self):
        """Windows cannot wait for nothing. The last client leaves while accepting is paused."""
        as_on_windows = '''
            import errno, functools, select, socket
            genuine_select, genuine_accept, calls = select.select, socket.socket.accept, []
            def select_something(rlist, wlist, xlist, timeout=None):
                if not rlist and not wlist:
                    raise OSError(errno.EINVAL, 'Invalid argument')
                return genuine_select(rlist, wlist, xlist, timeout)
            def accept(self):
                calls.append(1)
                if len(calls) == 2:
                    raise OSError(errno.EMFILE, 'Too many open files')
                return genuine_accept(self)
            select.select, socket.socket.accept = functools.partial(select_something), accept
            '''
        for script, *arguments in (['select_server.py'],
                                   ['selectors_server.py', '--selector', 'select', '--suffix=']):
            path = patched_copy(self, script, before=as_on_windows)
            server = self.start_server(path, *arguments)
            with self.connect(server) as first:
                self.assertEqual(ask(first), b'HELLO')
                second = self.connect(server)
                server.expect('cannot accept')
            self.assertEqual(ask(second), b'HELLO')
            server.stop()
            self.assertEqual([line for line in remaining_lines(server) if 'cannot' in line], [])

    def test_no_memory_to_watch_the_listener_again(self):
        """After a pause of accepting, epoll_ctl fails with ENOSPC."""
        path = faulty_copy(self, 'selectors_server.py', ['accept', 1, 1, errno.EMFILE],
                           ['register', 2, 1, errno.ENOSPC])
        for kind in 'epoll', 'poll':
            if hasattr(select, kind):
                server = self.start_server(path, '--selector', kind, '--suffix=')
                self.assertEqual(ask(self.connect(server)), b'HELLO')
                server.stop()
                lines = '\n'.join(server.seen + remaining_lines(server))
                self.assertNotIn('Traceback', lines)

    def assert_one_line(self, path, words, *arguments, before=()):
        """The server at PATH cannot start, says why in one line, and exits with status 1."""
        command = [*before, *PYTHON, os.path.join(FOLDER, path), '--port', '0', *arguments]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, timeout=TIMEOUT)
        self.assertRegex(ended.stderr.decode(), rf'^{words}\n$')
        self.assertEqual((ended.stdout, ended.returncode), (b'', 1))

    @unittest.skipUnless(LINUX, 'epoll is of Linux')
    def test_no_epoll(self):
        before = '''
            import errno, selectors
            def refuse(*arguments):
                raise OSError(errno.EMFILE, 'Too many open files')
            selectors.EpollSelector._selector_cls = refuse
            selectors.DefaultSelector = selectors.EpollSelector
            '''
        for script, *arguments in (
                ['selectors_server.py'], ['selectors_server.py', '--selector', 'epoll'],
                ['async_server.py', '--engine', 'asyncio']):
            path = patched_copy(self, script, before=before)
            self.assert_one_line(path, '(cannot .*): Too many open files', *arguments)

    def test_no_own_address(self):
        for script in SERVERS:
            path = faulty_copy(self, script, ['getsockname', 1, 9, errno.ENOBUFS])
            self.assert_one_line(path, 'cannot (start|listen).*: No buffer space available')

    def test_no_option_of_the_socket(self):
        for script in SERVERS:
            path = faulty_copy(self, script, ['setsockopt', 1, 1, errno.ENOBUFS])
            self.assert_one_line(path, 'cannot listen .*: No buffer space available')

    @unittest.skipUnless(LINUX, 'elsewhere asyncio needs other descriptors')
    def test_too_few_descriptors_for_asyncio(self):
        for limit in 5, 6:
            shell = with_shell(f'ulimit -n {limit}; exec "$@"')
            self.assert_one_line('async_server.py', 'cannot .*Too many open files.*',
                                 '--engine', 'asyncio', **shell)


# ---- torture: every call fails once

class Crowd:
    """Three clients of one server. A fault may cost one of them, and no other a single byte."""

    def __init__(self, test, server, one_by_one):
        self.test, self.server, self.lost, self.socks = test, server, 0, []
        try:
            if one_by_one:
                self.one_after_the_other()
            else:
                self.all_at_once()
        finally:
            self.close()

    def one_after_the_other(self):
        for number in range(3):
            self.open()
            for size in 5, 40000, 1:
                self.talk(0, size)
            self.close()

    def all_at_once(self):
        for number in range(3):
            self.open()
        for size in 5, 400000, 1:
            for number in range(3):
                self.talk(number, size)

    def open(self):
        sock = socket.socket()
        self.socks.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)  # so some sends will be short
        sock.settimeout(self.test.PATIENCE)
        sock.connect(self.server.address)

    def talk(self, number, size):
        """Send SIZE bytes, all of them if the server takes them before we read."""
        sock, data = self.socks[number], random_bytes(size)
        if not sock:
            return
        try:
            unsent, received, start = memoryview(data), bytearray(), time.monotonic()
            sock.setblocking(False)
            while len(received) < size:
                blocked = not unsent or not select.select([], [sock], [], 0.01)[1]
                if not blocked:
                    unsent = unsent[sock.send(unsent):]
                elif select.select([sock], [], [], 0.1)[0]:
                    part = sock.recv(1 << 20)
                    if not part:
                        raise ConnectionError
                    received += part
                if time.monotonic() - start > self.test.PATIENCE:
                    self.test.fail(f'no answer to {size} bytes after {len(received)}')
            self.test.assertTrue(received == data.upper(), 'wrong bytes')
        except OSError:
            sock.close()
            self.socks[number] = None
            self.lost += 1

    def close(self):
        for sock in self.socks:
            if sock:
                sock.close()
        self.socks = []


@unittest.skipUnless(LINUX, 'reads /proc')
class TortureTest(ServerTest):
    """As curl does it: the k-th call of its kind fails, for one k after the other and for each
    errno that the call may have. The client concerned may be lost. Its neighbours get every byte;
    no traceback; nothing spins; the server still serves; and no descriptor is left over.

    By default a sample. IO_MODELS_SOAK makes it long; then nearly all of them come."""
    PATIENCE = TIMEOUT
    ACCEPT = ['ECONNABORTED', 'EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM', 'EPERM', 'EPROTO',
              'ENETDOWN', 'ETIMEDOUT']
    RECV = ['ECONNRESET', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENOMEM', 'ENOBUFS', 'MemoryError']
    SEND = ['EPIPE', 'ECONNRESET', 'ENOBUFS', 'ENOMEM', 'EHOSTUNREACH', 'MemoryError']
    BLOCKING = {'accept': ACCEPT, 'recv': RECV, 'sendall': SEND}
    LOOP = {'accept': ACCEPT, 'recv': RECV + ['EAGAIN'], 'send': SEND + ['EAGAIN']}
    WATCH = {'poll': ['ENOMEM'], 'register': ['ENOMEM', 'ENOSPC'], 'modify': ['ENOMEM', 'ENOSPC']}
    CALLS = [       # a server; whether it serves one client at a time; its calls
        (['blocking_server.py'], False, {**BLOCKING, 'thread': ['EAGAIN']}),
        (['blocking_server.py', '--mode', 'process'], False,
         {**BLOCKING, 'fork': ['EAGAIN', 'ENOMEM']}),
        (['blocking_server.py', '--mode', 'serial'], True, BLOCKING),
        (['blocking_server.py', '--mode', 'pool'], False, BLOCKING),
        (['nonblocking_server.py', '--pause', '0.001'], False, LOOP),
        (['select_server.py'], False, {**LOOP, 'select': ['ENOMEM']}),
        (['selectors_server.py', '--suffix='], False, {**LOOP, **WATCH}),
        (['selectors_server.py', '--suffix=', '--selector', 'select'], False,
         {**LOOP, 'select': ['ENOMEM']}),
        (['async_server.py', '--engine', 'asyncio'], False, {**LOOP, **WATCH}),
        (['async_server.py', '--engine', 'io_uring'], False,
         {'accept': ACCEPT, 'recv': RECV, 'send': SEND, 'getpeername': ['ENOTCONN', 'ENOBUFS'],
          'completion': ['ECONNRESET', 'ENOMEM', 'EPIPE', 'ETIMEDOUT', 'ECANCELED'],
          'enter': ['EINTR', 'EAGAIN', 'EBUSY', 'ENOMEM']}),
        (['socketserver_server.py'], False,
         {**BLOCKING, 'poll': ['ENOMEM'], 'thread': ['EAGAIN']}),
        (['socketserver_server.py', '--mode', 'process'], False,
         {**BLOCKING, 'poll': ['ENOMEM'], 'fork': ['EAGAIN', 'ENOMEM']}),
    ]

    def test_torture(self):
        seed = random.randrange(1 << 32)
        choose = random.Random(seed)
        todo = [each for each in self.CALLS if each[0] in VARIANTS or '--selector' in each[0]]
        for number, (command, one_by_one, calls) in enumerate(todo):
            seconds = (SOAK or 2) / len(todo)
            plans = [[call, k, 1, 0 if name == 'MemoryError' else getattr(errno, name)]
                     for call, names in calls.items() for name in names for k in range(1, 13)]
            choose.shuffle(plans)
            with self.subTest(command=command, seed=seed):
                self.torture(command, one_by_one, plans, seconds)

    def torture(self, command, one_by_one, plans, seconds):
        """Run as many of PLANS as there are SECONDS for against one server, at least one."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file = os.path.join(folder.name, 'plan')
        server = self.start_server(faulty_copy(self, command[0], file=file), *command[1:])
        Crowd(self, server, one_by_one)
        wait_until(lambda: len(client.process_tree(server.pid)) == 1, 2)
        held = count_descriptors(server.pid)
        end = time.monotonic() + seconds
        for plan in plans:
            try:
                self.one_fault(server, one_by_one, file, plan, held)
            except Exception as error:
                raise AssertionError(f'after the fault {plan}: {error}') from error
            if time.monotonic() > end:
                break
        lines = server.seen + self.assert_stops(server, signal.SIGTERM)
        known = '^(listening on|plan taken|refused|cannot accept|cannot serve|stopped)'
        self.assertEqual([line for line in lines if not re.search(known, line)], [])

    def give_plan(self, server, file, plan):
        with open(file, 'w') as plan_file:
            json.dump(plan, plan_file)
        server.process.send_signal(signal.SIGUSR1)
        server.expect('^plan taken')

    def one_fault(self, server, one_by_one, file, plan, held):
        self.give_plan(server, file, [plan])
        crowd = Crowd(self, server, one_by_one)
        self.assertLessEqual(crowd.lost, 1)
        self.give_plan(server, file, [])
        before = client.cpu_seconds(server.pid)
        self.assert_serves(server)
        left = []

        def all_back():
            left[:] = [count_descriptors(server.pid), len(client.process_tree(server.pid))]
            return left[0] <= held and left[1] == 1
        self.assertTrue(wait_until(all_back, 3), f'{left} descriptors and processes, {held} before')
        self.assertLess(client.cpu_seconds(server.pid) - before, 0.2, 'it spins')


# ---- swarm: random clients

class SwarmClient:
    """One random client: slices from 1 byte to 1 MB, pauses, and an end of its own kind."""

    def __init__(self, address, choose):
        self.choose = choose
        size = choose.choice([0, 1, 1000, 30000, 100000, 1000000])
        self.unsent = memoryview(random_bytes(size + choose.randrange(1 + size)))
        self.expected = bytes(self.unsent).upper()
        self.received = 0
        self.end = choose.choice(['half-close', 'half-close', 'close', 'reset', 'reset early'])
        self.stop_at = choose.randrange(1 + len(self.expected))
        self.half_closed, self.pause_until = False, 0
        self.sock = socket.create_connection(address, TIMEOUT)
        self.sock.setblocking(False)

    def slice(self):
        return int(2 ** self.choose.uniform(0, 20))

    def step(self):
        """Do one thing that this client can do now; return False when it has ended."""
        if time.monotonic() < self.pause_until:
            return True
        if self.choose.random() < 0.02:
            self.pause_until = time.monotonic() + self.choose.random() * 0.05
        if self.end == 'reset early' and self.received >= self.stop_at:
            return self.finish(reset=True)
        if self.received == len(self.expected) and self.end != 'half-close':
            return self.finish(reset=self.end == 'reset')
        try:
            if self.unsent and self.choose.random() < 0.5:
                self.unsent = self.unsent[self.sock.send(self.unsent[:self.slice()]):]
            elif not self.unsent and self.end == 'half-close' and not self.half_closed:
                self.sock.shutdown(socket.SHUT_WR)
                self.half_closed = True
            else:
                return self.receive()
        except BlockingIOError:
            pass
        return True

    def receive(self):
        data = self.sock.recv(self.slice())
        if data != self.expected[self.received:self.received + len(data)]:
            raise AssertionError(f'wrong bytes after {self.received}')
        self.received += len(data)
        if data:
            return True
        if self.received < len(self.expected) or not self.half_closed:
            raise AssertionError(f'the end after {self.received} of {len(self.expected)} bytes')
        return self.finish()

    def finish(self, reset=False):
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.sock.close()
        return False


class SwarmTest(ServerTest):
    """Random clients against the oracle bytes.upper. IO_MODELS_SOAK makes it long."""

    def test_swarm(self):
        for script, *arguments in VARIANTS:
            if 'serial' in arguments or 'pool' in arguments:
                continue        # there a client may wait for all the others
            server = self.start_server(script, *arguments)
            end = time.monotonic() + (SOAK or 1) / (len(VARIANTS) - 2)
            while True:
                seed = random.randrange(1 << 32)
                with self.subTest(server=server.name, seed=seed):
                    self.swarm(server, random.Random(seed))
                if time.monotonic() > end:
                    break
            self.assert_serves(server)
            if LINUX:
                self.assertTrue(wait_until(
                    lambda: len(client.process_tree(server.pid)) == 1 and
                    count_descriptors(server.pid) < 12), 'something is left of the clients')
            server.stop()
            if POSIX:
                self.assertEqual(remaining_lines(server), ['stopped'])

    def swarm(self, server, choose):
        """Let a dozen clients live at the same time, each until its end."""
        alive = [SwarmClient(server.address, choose) for _ in range(12)]
        for each in alive:
            self.addCleanup(each.sock.close)
        end = time.monotonic() + 3 * TIMEOUT
        while alive:
            alive = [each for each in alive if each.step()]
            self.assertLess(time.monotonic(), end, f'{len(alive)} do not come to an end')


# ---- the trace

class TraceTest(ServerTest):
    """What --trace prints is what was done: a client joins, waits 0.1 s, says hello, leaves."""

    def traced(self, script, *arguments, say=b'hello', silent=0.1):
        """Return the lines that a server prints of such a conversation."""
        suffix = ['--suffix='] * ('selectors' in script)
        server = self.start_server(script, '--trace', *arguments, *suffix)
        with self.connect(server) as sock:
            server.expect('joined')
            time.sleep(silent)
            sock.sendall(say)
            receive(sock, len(say))
        server.expect("#1 +recv +.*b'': the client")     # the last word may be cut off
        lines = [line for line in server.seen if not line.startswith('listening')]
        for line in lines:
            self.assertRegex(line, r'^ *\d+\.\d{3} s  (#\d+|-) +[a-z/]+ +[ -~]+$')
            self.assertLessEqual(len(line), 80)
        return lines

    def find(self, lines, pattern):
        """Return the groups of the first line that matches, and forget the lines up to it: so
        the order is tested too."""
        while lines:
            match = re.search(pattern, lines.pop(0))
            if match:
                return match.groups()
        self.fail(f'no line has {pattern!r}')

    def assert_waited(self, words):
        number, unit = words
        seconds = float(number) * {'s': 1, 'ms': 1e-3, 'us': 1e-6}[unit]
        self.assertTrue(0.05 < seconds < 5, words)

    def test_blocking(self):
        modes = ['thread', 'serial', 'pool'] + ['process'] * (not no_fork)
        for mode in modes:
            lines = self.traced('blocking_server.py', '--mode', mode)
            self.find(lines, rf'#1 +accept +blocked {SPAN}, then 127\.0\.0\.1:\d+ joined$')
            self.assert_waited(self.find(
                lines, rf"#1 +recv +blocked {SPAN}, then 5 bytes b'hello'$"))
            self.find(lines, rf"#1 +sendall +blocked {SPAN}, then 5 bytes b'HELLO'$")
            self.find(lines, rf"#1 +recv +blocked {SPAN}, then b'': the client closed$")

    def test_pool_shows_who_waits(self):
        server = self.start_server(
            'blocking_server.py', '--trace', '--mode', 'pool', '--pool-size', '1')
        first = self.connect(server)
        server.expect(rf'#1 +queue +waited {SPAN} for a free worker')
        self.connect(server)
        server.expect('#2 +queue +put into it, 0 before it')
        time.sleep(0.2)
        first.close()
        waited = server.expect(rf'#2 +queue +waited {SPAN} for a free worker')
        self.assert_waited(waited.groups())

    def test_nonblocking(self):
        lines = self.traced('nonblocking_server.py')
        asked, number, unit, not_yet = self.find(
            lines, rf'#1 +recv +asked (\d+) times in {SPAN}, (\d+) times "not yet"$')
        self.assert_waited((number, unit))
        self.assertGreater(int(not_yet), 100)
        self.assertEqual(int(asked), int(not_yet) + 1)
        work_rounds, = self.find(lines, r'- +work +other work done (\d+) times meanwhile$')
        self.assertGreater(int(work_rounds), 100)
        self.find(lines, rf"#1 +recv +copied in {SPAN}: 5 bytes b'hello'$")
        self.find(lines, rf"#1 +send +copied in {SPAN}: 5 bytes b'HELLO'$")

    def test_select_and_selectors(self):
        for script in 'select_server.py', 'selectors_server.py':
            lines = self.traced(script)
            self.find(lines, rf'- +select +waited {SPAN}, 1 of 1 ready: read listener$')
            self.find(lines, rf'#1 +accept +took {SPAN}: 127\.0\.0\.1:\d+ joined$')
            self.assert_waited(self.find(
                lines, rf'- +select +waited {SPAN}, 1 of 2 ready: read #1$'))
            self.find(lines, rf"#1 +recv +copied in {SPAN}: 5 bytes b'hello'$")
            self.find(lines, rf"#1 +send +copied in {SPAN}: 5 bytes b'HELLO'$")

    def test_a_client_that_does_not_read(self):
        """It is watched for writing, and later for reading again: a line each."""
        for script, to_write, to_read in (
                ('select_server.py', r'watch +for writing: \d+ bytes are', 'watch +for re'),
                ('selectors_server.py', r'watch +for writing: \d+ bytes are', 'watch +for re'),
                ('nonblocking_server.py', r'wlist +\d+ bytes are unsent', 'rlist +all is sent')):
            server = self.start_server(
                script, '--trace', *['--suffix='] * (script == 'selectors_server.py'))
            sock = self.connect(server)
            sent = send_until_blocked(sock)
            server.expect(f'#1 +{to_write}')
            self.assertEqual(receive(sock, len(sent)), sent.upper())
            if script != 'nonblocking_server.py':
                server.expect('- +select .* ready: .*write #1')
            server.expect(f'#1 +{to_read}')

    def test_asynchronous(self):
        for engine in ['asyncio'] + ['io_uring'] * (not no_io_uring):
            lines = self.traced('async_server.py', '--engine', engine)
            started = 'queued' if engine == 'io_uring' else 'asked' if POSIX else 'submitted'
            ended = 'ready after {}, copied' if started == 'asked' else 'in place, seen after {}'
            self.find(lines, r'#1 +accept +127\.0\.0\.1:\d+ joined$')
            self.find(lines, f'#1 +recv +{started} in {SPAN}; the process goes on$')
            if engine == 'io_uring':
                self.assert_waited(self.find(
                    lines, rf'- +enter +waited {SPAN} in io_uring_enter, 1 completed$'))
            self.assert_waited(self.find(
                lines, f"#1 +recv +{ended.format(SPAN)}: 5 bytes b'hello'$"))

    @unittest.skipIf(no_io_uring, no_io_uring)
    def test_completed_while_it_computed(self):
        """What the kernel has done while the process computed needs no further system call."""
        server = self.start_server('async_server.py', '--trace', '--work', '0.4')
        first, second = self.connect(server), self.connect(server)
        server.expect('#2 +recv +queued')
        time.sleep(0.05)        # until the process waits
        first.sendall(b'hello')
        server.expect("#1 +recv +in place")
        second.sendall(b'me too')
        server.expect(r'#1 +answer +computed')
        server.expect(r'- +look +\d+ completed meanwhile')
        server.expect(rf"#2 +recv +in place, seen after {SPAN}: 6 bytes b'me too'$")

    def test_socketserver(self):
        lines = self.traced('socketserver_server.py')
        for call in 'socket', 'bind', 'listen', 'accept', 'handle':
            self.find(lines, f' {call} ')
        self.assert_waited(self.find(lines, rf"#1 +recv +blocked {SPAN}, then 5 bytes b'hello'$"))

    def test_reset(self):
        """What the system says of a lost connection stands in the line of its recv."""
        for script, *arguments in VARIANTS:
            server = self.start_server(script, '--trace', *arguments)
            with self.connect(server) as sock:
                sock.sendall(b'hello')
                server.expect('#1 +send.*HELLO')
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            # Windows has words of its own for it
            server.expect('#1 +recv +.*Connection reset' if POSIX else '#1 +recv +.*[^d]$')

    def test_slow_answer(self):
        """Between recv and send: why nothing happens for a while."""
        for script, *arguments in VARIANTS:
            server = self.start_server(
                script, *arguments, '--trace', '--delay', '0.02', '--work', '0.03')
            with self.connect(server) as sock:
                self.assertEqual(ask(sock), b'HELLO')
            server.expect("#1 +recv +.*b'hello'")
            server.expect(rf'#1 +answer +waited {SPAN}$')
            server.expect(rf'#1 +answer +computed 0\.030 s of CPU in {SPAN}$')
            server.expect("#1 +send.*b'HELLO")

    def test_two_clients_are_told_apart(self):
        for script in SERVERS:
            server = self.start_server(script, '--trace')
            for number in 1, 2:
                sock = self.connect(server)
                sock.sendall(b'I am %d' % number)
                server.expect(rf"#{number} +recv .*b'I am {number}'")

    def test_control_characters_and_length(self):
        for script in SERVERS:
            lines = self.traced(script, say=b'\x1b[2J\xff\n' + b'x' * 1000, silent=0)
            self.assertTrue([line for line in lines
                             if r"b'\x1b[2" in line and line.endswith('...')])

    def test_figure_and_trace_use_the_same_words(self):
        for script, words in (
                ('blocking', 'blocked'), ('nonblocking', 'not|yet|copied'),
                ('select', 'waited|copied'), ('selectors', 'waited|copied'),
                ('async', 'submit|goes on|in place'), ('socketserver', 'blocked')):
            doc, code = read_source(f'{script}_server.py').split('"""\nimport', 1)
            for word in words.split('|'):
                self.assertIn(word, doc)
                self.assertIn(word, code)


# ---- the client

class ClientTest(ServerTest):

    def client(self, server, *arguments, **options):
        return run('client.py', *arguments, '--port', str(server.address[1]), **options)

    def start_client(self, server, *arguments, **options):
        """Start a client that we talk to; it is killed in the end if it still runs."""
        command = [*PYTHON, 'client.py', *arguments, '--port', str(server.address[1])]
        process = subprocess.Popen(command, cwd=FOLDER, **options)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def serve_conversations(self, *conversations):
        """Return something with the address of a server that holds each of these CONVERSATIONS
        with one client."""
        listener = socket.create_server(('127.0.0.1', 0))

        def serve():
            with listener:
                for converse in conversations:
                    with listener.accept()[0] as conn:
                        converse(conn)
        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)
        self.address = listener.getsockname()
        return self

    def test_messages(self):
        server = self.start_server('select_server.py')
        long = 'x' * 20000
        ended = self.client(server, '-m', 'hello', '-m', '  ', '-m', 'gr\xf6\xdfe', '-m', long)
        self.assertEqual(ended.stdout.decode().split(), ['HELLO', 'GR\xf6\xdfE', long.upper()])
        self.assertEqual((ended.returncode, ended.stderr), (0, b''))

    def test_pipe(self):
        """10 MB of random bytes through every server, byte for byte."""
        data = random_bytes(10 << 20)
        for script in SERVERS:
            with self.subTest(script=script):
                server = self.start_server(script, *['--suffix='] * ('selectors' in script))
                ended = self.client(server, input=data)
                self.assertEqual(ended.stderr, b'')
                self.assertTrue(ended.stdout == data.upper(), f'{len(ended.stdout)} bytes')
                self.assertEqual(ended.returncode, 0)

    def test_empty_pipe(self):
        ended = self.client(self.start_server('select_server.py'), input=b'')
        self.assertEqual(ended.stdout, b'')

    @unittest.skipUnless(POSIX, 'Windows has no head')
    def test_nobody_reads_the_pipe(self):
        server = self.start_server('select_server.py')
        command = (f'{sys.executable} client.py --port {server.address[1]} < test_all.py '
                   '| head -c 10')
        ended = subprocess.run(command, shell=True, cwd=FOLDER, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
        self.assertEqual((len(ended.stdout), ended.stderr), (10, b''))

    def test_server_goes_away(self):
        server = self.serve_conversations(lambda conn: conn.recv(100))
        ended = self.client(server, '-m', 'hello', '-m', 'again')
        self.assertEqual((ended.returncode, ended.stdout), (1, b''))
        self.assertEqual(ended.stderr.split(), b'the server has closed the connection'.split())

    def test_server_resets_a_pipe(self):
        def converse(conn):
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            conn.recv(100)
        process = self.start_client(self.serve_conversations(converse), stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(b'hi')
        process.stdin.flush()
        self.assertEqual(process.wait(TIMEOUT), 1)      # though its input has not ended
        self.assertIn(b'the server has closed the connection', process.communicate()[1])

    @unittest.skipUnless(POSIX, 'needs a shell')
    def test_closed_output(self):
        """With standard output closed the answer is not lost in silence; with standard error
        closed nothing goes elsewhere."""
        server = self.start_server('select_server.py')
        command = f'printf hello | {sys.executable} client.py --port {server.address[1]} >&-'
        ended = subprocess.run(command, shell=True, cwd=FOLDER, stderr=subprocess.PIPE)
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(ended.stderr, b'cannot write to standard output: it is closed\n')
        command = (f'{sys.executable} client.py load --seconds 0.2 --json '
                   f'--port {server.address[1]} 2>&-')
        ended = subprocess.run(command, shell=True, cwd=FOLDER, stdout=subprocess.PIPE)
        self.assertEqual((ended.returncode, json.loads(ended.stdout)['errors']), (0, {}))

    @unittest.skipUnless(POSIX, 'needs POSIX pipes')
    def test_pipe_into_a_slow_reader(self):
        """Standard output may be a pipe that takes little at a time, and say so (O_NONBLOCK)."""
        data = random_bytes(1 << 20)
        server = self.start_server('select_server.py')
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        process = self.start_client(server, stdin=subprocess.PIPE, stdout=writing,
                                    stderr=subprocess.PIPE)
        os.close(writing)

        def send():
            process.stdin.write(data)
            process.stdin.close()
        threading.Thread(target=send).start()
        with open(reading, 'rb') as file, process.stderr:
            self.assertTrue(file.read() == data.upper())
            self.assertEqual((process.stderr.read(), process.wait(TIMEOUT)), (b'', 0))

    def test_server_answers_half_and_closes(self):
        """In order, so nothing else tells: fewer bytes came back than were sent."""
        def converse(conn):
            data = receive_all(conn)
            conn.sendall(data[:len(data) // 2].upper())
        ended = self.client(self.serve_conversations(converse), input=b'x' * 1000)
        self.assertEqual((ended.returncode, ended.stdout), (1, b'X' * 500))
        self.assertRegex(ended.stderr.decode(), r'^[ -~]+\r?\n$')

    def test_server_never_stops_sending(self):
        """`load` wants an answer of its own length, and stops with a line; it does not collect."""
        def converse(conn):
            try:
                while True:
                    conn.sendall(b'x' * 65536)
            except OSError:
                pass
        server = self.serve_conversations(converse)
        ended = self.client(server, 'load', '--seconds', '0.3')
        self.assertEqual(ended.returncode, 1)
        self.assertLess(len(ended.stderr + ended.stdout), 2000)
        self.assertNotIn(b'Traceback', ended.stderr)

    def test_reply_in_pieces(self):
        """A reply is all that comes until the line goes quiet; half a character is no end."""
        whole = '\u4e16\u754c'.encode()

        def converse(conn):
            conn.recv(100)
            for piece in whole[:1], whole[1:5], whole[5:]:
                conn.sendall(piece)
                time.sleep(0.02)
            self.assertEqual(conn.recv(100), b'next')
            conn.sendall(b'NEXT')
            conn.recv(1)
        ended = self.client(self.serve_conversations(converse), '-m', 'hello', '-m', 'next')
        self.assertEqual(ended.stdout.replace(b'\r', b''), whole + b'\nNEXT\n')

    def test_no_server(self):
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = str(free.getsockname()[1])
        for arguments in ['-m', 'x'], ['chat'], ['load']:
            ended = run('client.py', *arguments, '--port', port)
            self.assertEqual(ended.returncode, 1)
            words = rf"^cannot connect to host '127\.0\.0\.1', port {port}: .+\n$"
            self.assertRegex(ended.stderr.decode(), words)

    def screen(self, master, until):
        """Read the terminal of a client until it shows UNTIL; return what it has shown."""
        shown = b''
        while until not in shown:
            self.assertTrue(select.select([master], [], [], TIMEOUT)[0], shown)
            shown += os.read(master, 1000)
        return shown

    @unittest.skipUnless(POSIX, 'needs a pseudo-terminal')
    def test_late_words(self):
        """What a server says when nobody has asked is shown at the prompt, and its leaving too."""
        import pty
        go_on = threading.Event()

        def converse(conn):
            go_on.wait(TIMEOUT)
            conn.sendall(b'late')
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        process = self.start_client(self.serve_conversations(converse), stdin=slave,
                                    stdout=slave, stderr=slave)
        os.close(slave)
        self.screen(master, b'>>: ')
        go_on.set()
        self.assertIn(b'late\r\n', self.screen(master, b'closed the connection'))
        self.assertEqual(process.wait(TIMEOUT), 1)

    @unittest.skipUnless(POSIX, 'needs a pseudo-terminal')
    def test_chat_at_a_terminal(self):
        import pty
        server = self.start_server('selectors_server.py', '--suffix', '\x1b[2J')
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        address = rb'127\.0\.0\.1:\d+'
        for leave in b'exit\n', b'\x04', b'\x03', None:
            process = self.start_client(server, stdin=slave, stdout=slave, stderr=slave,
                                        preexec_fn=make_controlling_terminal)
            self.assertRegex(self.screen(master, b'>>: '),
                             b'connected to ' + address + b' from ' + address)
            os.write(master, b'\n')
            self.screen(master, b'>>: ')
            os.write(master, 'hello \u4e16\n'.encode())
            self.screen(master, 'HELLO \u4e16\\x1b[2J\r\n>>: '.encode())
            if leave:
                os.write(master, leave)
                self.assertEqual(process.wait(TIMEOUT), 130 if leave == b'\x03' else 0)
            else:           # the server leaves while we wait at the prompt
                server.stop()
                self.screen(master, b'the server has closed the connection')
                self.assertEqual(process.wait(TIMEOUT), 1)
        os.close(slave)


def make_controlling_terminal():
    """Make standard input the controlling terminal of this process: Ctrl-C becomes a signal."""
    import fcntl
    import termios
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class LoadTest(ServerTest):

    def test_idle_clients_that_cannot_connect(self):
        """The first error ends it: each might take seconds."""
        with socket.create_server(('127.0.0.1', 0)) as free:
            address = free.getsockname()
        with unittest.mock.patch.object(client.socket, 'socket', wraps=socket.socket) as make:
            socks, errors = client.open_idle(client.resolve(*address), 3)
        self.assertEqual(make.call_count, 1)
        self.assertEqual((socks, list(errors.values())), ([], [3]))

    def load(self, server, *arguments):
        ended = run('client.py', 'load', '--port', str(server.address[1]), '--seconds', '0.3',
                    '--json', *arguments)
        return ended, json.loads(ended.stdout) if ended.stdout else ended.stderr

    def test_load(self):
        for script, suffix in ('select_server.py', ''), ('selectors_server.py', '_SB'):
            server = self.start_server(script)
            ended, report = self.load(
                server, '--connections', '20', '--idle', '30', '--size', '100')
            self.assertEqual((ended.returncode, report['errors']), (0, {}))
            self.assertEqual(report['suffix'], suffix)
            self.assertGreater(report['requests'], 100)
            times = [report[f'{each}_ms'] for each in ('p50', 'p95', 'p99', 'max')]
            self.assertEqual(times, sorted(times))
            if LINUX:
                self.assertTrue(0.5 < report['server_cpu_us_per_request'] < 5000)

    def test_big_messages_and_reconnect(self):
        server = self.start_server('selectors_server.py')
        for arguments in ['--size', '300000', '--seconds', '0.7'], ['--reconnect']:
            ended, report = self.load(server, *arguments, '--connections', '5')
            self.assertEqual((ended.returncode, report['errors']), (0, {}), arguments)
            self.assertGreater(report['requests'], 5)

    def test_one_wrong_byte_is_an_error(self):
        """A server that flips one byte now and then makes it report errors and exit with 1."""
        flip = '''
            import random
            def flip(data):
                return bytes([data[0] ^ (random.random() < 0.1)]) + data.upper()[1:]
            '''
        replaced = ' else bytes.upper\n', ' else flip\n'
        path = patched_copy(self, 'select_server.py', replaced, before=flip)
        ended, report = self.load(self.start_server(path))
        self.assertEqual(ended.returncode, 1)
        self.assertGreater(report['errors']['wrong answer'], 0)

    def test_text_report(self):
        server = self.start_server('select_server.py')
        ended = run('client.py', 'load', '--port', str(server.address[1]), '--seconds', '0.2')
        self.assertRegex(ended.stdout.decode(), r'requests +\d+: \d+ a second\s+'
                                                r'latency +p50 [\d.]+ ms, p95 .*\s+CPU +')

    def test_server_dies(self):
        """Between two messages, or (8 MB) in the middle of one."""
        servers = self.start_all([['select_server.py']] * 2)
        loads = [subprocess.Popen(
            [*PYTHON, 'client.py', 'load', '--port', str(server.address[1]), '--seconds', '10',
             '--json', '--size', size, '--connections', '10'], cwd=FOLDER,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for server, size in zip(servers, ['64', '8000000'])]
        time.sleep(0.8 if POSIX else 4)         # until they are at it
        for server, load in zip(servers, loads):
            server.process.kill()
            report, errors = load.communicate(timeout=TIMEOUT)
            self.assertEqual((load.returncode, errors), (1, b''))
            self.assertTrue(json.loads(report)['errors'])


class CompareTest(ServerTest):

    def verdict(self, figures, decide):
        """Return the verdict on the claim that the function DECIDE of client.py decides."""
        claim = next(each[2] for each in client.CLAIMS if each[3] == decide)
        return next(each for each in client.judge(figures) if each['claim'] == claim)['verdict']

    def test_figures_and_verdicts(self):
        """Two servers measured in a moment; a script that is missing is said to be, and its
        claims are not judged."""
        figures = client.Figures(quick=True)
        figures.crowd = 20
        steps = [(1, name, name, client.measure_server, script, arguments, [])
                 for name, script, arguments in (
                     ('blocking serial', 'blocking_server.py', ['--mode', 'serial']),
                     ('select', 'select_server.py', []), ('blocking thread', 'no_server.py', []))]
        try:
            with unittest.mock.patch.object(client, 'plan', lambda figures: steps):
                client.measure_all(figures, lambda *progress: None)
        finally:
            for name in list(figures.kept):
                figures.stop(name)
        self.assertGreater(min(figures.of('blocking serial', 'second_waits_s')),
                           0.9 * client.HOLD_SECONDS)
        self.assertIn('no_server.py', figures.failed['blocking thread'])
        self.assertEqual(self.verdict(figures, client.claim_serial), client.HOLDS)
        self.assertEqual(self.verdict(figures, client.claim_free), 'could not be measured')
        self.assertIn('select', client.report_table(figures, 100))

    def test_a_verdict_follows_the_figures(self):
        for waited, verdict in ([client.HOLD_SECONDS] * 3, client.HOLDS), (
                [0.001] * 3, client.FAILS), ([client.HOLD_SECONDS, 0.001], client.UNSURE):
            figures = client.Figures(quick=True)
            for each in waited:
                figures.add('blocking serial', 'second_waits_s', each)
            self.assertEqual(self.verdict(figures, client.claim_serial), verdict)

    def test_one_odd_value_is_enough_for_cannot_tell(self):
        for odd, verdict in (0.025, client.HOLDS), (0.001, client.UNSURE):
            figures = client.Figures(quick=True)
            for name in 'select', 'nonblocking', 'blocking thread':
                for value in 0.025, 0.025, odd if name == 'nonblocking' else 0.025:
                    delay = 0.001 if 'thread' in name else value
                    figures.add(name, 'delay_delays_s', delay)
            self.assertEqual(self.verdict(figures, client.claim_waiting), verdict)

    def test_a_rate_counts_the_time_without_answers(self):
        server = self.start_server('nonblocking_server.py', '--pause', '0.05')
        found = client.run_batches(server, 1, 10, 0.012)
        self.assertLess(found.rate, 60)     # one answer in 0.05 s at most, and one in its batch: 83

    def test_few_open_files(self):
        """What cannot be measured is said; the rest is judged."""
        figures = client.Figures(quick=True)
        figures.steps, figures.limit = [], 200
        verdicts = {each['verdict'] for each in client.judge(figures)}
        self.assertEqual(verdicts, {'could not be measured'})

    @unittest.skipUnless(POSIX, 'on Windows the first thread is the server itself')
    def test_a_refused_client_is_not_a_fast_one(self):
        path = faulty_copy(self, 'blocking_server.py', ['thread', 2, 9, errno.EAGAIN])
        with self.assertRaisesRegex(RuntimeError, 'closed the connection'):
            client.second_client_wait(self.start_server(path).address)
        with self.assertRaises((RuntimeError, ConnectionResetError)):
            client.answer_time(self.start_server(path).address, 2)

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_process_with_half_a_character_in_its_name(self):
        process = subprocess.Popen(
            [*PYTHON, '-c', "open('/proc/self/comm', 'wb').write(b'\\xe4\\xb8'); print(input())"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b'written\n')
        process.stdin.flush()
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        process.stdout.readline()
        self.assertIn(process.pid, client.process_tree(os.getpid()))

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_two_servers_on_one_port(self):
        """The CPU is that of the server which listens on this address."""
        first = self.start_server('select_server.py')
        try:
            second = self.start_server('select_server.py', '--host', '::1', '--port',
                                       str(first.address[1]))
        except RuntimeError as error:
            self.skipTest(f'no IPv6 here: {error}')
        for server in first, second:
            self.assertEqual(client.find_listener_pid(server.address), server.pid)
            sock = self.connect(server)
            self.assertEqual(ask(sock), b'HELLO')
            self.assertEqual(client.receive_queue(server.address, sock.getsockname()), 0)

    def test_the_keys_of_the_json_are_documented(self):
        figures = client.Figures(quick=True)
        report = client.json_report(figures, client.judge(figures), False)
        page = read_source('README.md').partition('compare --json` prints these keys')[2]
        block = re.search(r'^```text\n(.*?)^```$', page, flags=re.M | re.S)[1]
        self.assertEqual(set(report), set(re.findall(r'^(\w+) ', block, flags=re.M)))
        self.assertEqual(json.loads(json.dumps(report)), report)

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_ctrl_c_leaves_no_server(self):
        for number in signal.SIGINT, signal.SIGTERM:
            process = subprocess.Popen([*PYTHON, 'client.py', 'compare'], cwd=FOLDER,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE)
            self.addCleanup(process.kill)
            self.assertTrue(wait_until(lambda: len(client.process_tree(process.pid)) > 1))
            server = client.process_tree(process.pid)[1]
            process.send_signal(number)
            process.communicate(timeout=TIMEOUT)
            self.assertIn(process.returncode, [1, 130, 128 + number])
            self.assertTrue(all_ended([server]))


class FigureTest(ServerTest):

    def scene(self, lines, steps=(0.3, 0.31, 0.4)):
        """Return what play_scene returns, for trace LINES of a client that connects at 100 s."""
        steps = [100 + seconds for seconds in steps]
        client_steps = dict(zip(('ask', 'reply', 'leave'), steps), connect=100, name='A', port=7)
        trace = [[98 + float(line.split()[0]), line] for line in lines]     # clocks differ by 98 s
        return {'trace': trace, 'clients': [client_steps]}

    def test_phases_of_made_up_traces(self):
        """What is drawn of one read is what the trace lines say, in seconds since connect."""
        accept = '   2.000 s  #1   accept   took 5 us: 127.0.0.1:7 joined'
        cases = {
            'blocking': (["   2.300 s  #1   recv     blocked 300.0 ms, then 5 bytes b'hello'",
                          "   2.301 s  #1   sendall  blocked 30 us, then 5 bytes b'HELLO'"],
                         ['blocked in recv 300.0 ms', 'waits for data', '', 'in recv', '30 us',
                          '30 us']),
            'select': (['   2.300 s  -    select   waited 300.0 ms, 1 of 2 ready: read #1',
                        "   2.300 s  #1   recv     copied in 9 us: 5 bytes b'hello'"],
                       ['blocked in select 300.0 ms', 'waits for data', '9 us', '9 us']),
            'polling': (['   2.300 s  #1   recv     asked 999 times in 300.0 ms, 998 times "not',
                         '   2.300 s  -    work     other work done 998 times meanwhile',
                         "   2.300 s  #1   recv     copied in 9 us: 5 bytes b'hello'"],
                        ['asked 999 times in 300.0 ms', 'waits for data', '9 us', '9 us']),
            'io_uring': (['   2.000 s  #1   recv     queued in 8 us; the process goes on',
                          '   2.300 s  -    enter    waited 300.0 ms in io_uring_enter, 1 compl',
                          "   2.300 s  #1   recv     in place, seen after 300.0 ms: 5 bytes b'h"],
                         ['goes on, in enter 300.0 ms', 'waits for data', '', 'unseen']),
        }
        for name, (lines, labels) in cases.items():
            with self.subTest(name):
                phases = client.read_phases(self.scene([accept, *lines]))
                self.assertEqual([phase[4] for phase in phases], labels)
                row, kind, start, end, label = phases[0]
                self.assertAlmostEqual(start, 0, places=2)
                self.assertAlmostEqual(end, 0.3, places=2)
                placed = client.place_read(phases, scale=100, block=8)
                self.assertAlmostEqual(placed[0][3], 30, delta=1)       # the wait is to scale
                self.assertEqual({width for _, kind, _, width, _ in placed if kind == 'copy'}, {8})

    def test_who_sends_the_answer(self):
        """With completion the process goes on while the kernel takes it."""
        for words, kind in ("taken, seen after 72 us: 5 bytes b'HELLO'", 'free send'), (
                "copied in 72 us: 5 bytes b'HELLO'", 'send'):
            process, kernel = client.answer_of(words, 1, ['72 us'])
            self.assertEqual((process[1], kernel[1]), (kind, 'send'))

    def test_clients_of_a_made_up_trace(self):
        lines = ['   2.100 s  #1   accept   took 5 us: 127.0.0.1:7 joined',
                 '   2.500 s  #1   answer   waited 150.0 ms']
        phases = client.client_phases(self.scene(lines, (0.2, 0.5, 0.6)))
        self.assertEqual([phase[1] for phase in phases],
                         ['unaccepted', 'silent', 'held', 'delay', 'silent'])
        ends = [phase[3] for phase in phases]
        for end, expected in zip(ends, (0.1, 0.2, 0.35, 0.5, 0.6)):
            self.assertAlmostEqual(end, expected, places=2)

    def test_a_file_that_cannot_be_written(self):
        for command in ['figure', '--svg'], ['compare', '--html']:
            ended = run('client.py', *command, os.path.join(FOLDER, 'no such folder', 'file'))
            self.assertEqual((ended.returncode, ended.stdout), (1, b''))
            self.assertRegex(ended.stderr.decode(), '^cannot write .*no such folder.*\n$')

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_ctrl_c_leaves_no_server(self):
        process = subprocess.Popen([*PYTHON, 'client.py', 'figure'], cwd=FOLDER,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.assertTrue(wait_until(lambda: len(client.process_tree(process.pid)) > 5))
        servers = client.process_tree(process.pid)[1:]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT)
        self.assertTrue(all_ended(servers))

    def test_figure(self):
        """Drawn from a run of a few servers, as text and as a picture; what fails is said."""
        lanes = [('blocking thread', 'blocking_server.py', []),
                 ('select', 'select_server.py', []), ('missing', 'no_server.py', [])]
        with unittest.mock.patch.object(client, 'LANES', lanes):
            data = client.play_figure()
        thread, loop, missing = data['lanes']
        self.assertEqual(['trace' in lane['read'] for lane in data['lanes']], [True, True, False])
        self.assertLess(self.held_up(thread['delay']), 0.1)
        self.assertGreater(self.held_up(loop['delay']), 0.1)
        text = client.figure_text(data)
        for word in 'blocking thread', 'select', 'missing', 'no_server.py':
            self.assertIn(word, text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        self.assertTrue(text.isascii())
        picture = xml.dom.minidom.parseString(client.figure_svg(data))
        self.assertEqual(picture.documentElement.tagName, 'svg')

    def held_up(self, scene):
        """Return how long the third client waited for the answers of others, in seconds."""
        phases = client.client_phases(scene)
        delays = [phase for phase in phases if phase[1] == 'delay']
        self.assertEqual([phase[0] for phase in delays], ['A', 'B', 'C'])
        for _, _, start, end, _ in delays:
            self.assertGreater(end - start, 0.9 * client.SLOW_SECONDS)
        return sum(end - start for name, kind, start, end, _ in phases
                   if name == 'C' and kind in ('held', 'unaccepted'))


# ---- can the contract fail?

class MutationTest(unittest.TestCase):
    """Servers that are wrong on purpose: the contract must catch each by the test for it."""

    MUTATIONS = [       # the test, and what is replaced in select_server.py: (old, new)
        ('test_answers_in_upper_case', ' else bytes.upper\n', ' else bytes.swapcase\n'),
        ('test_answers_at_once', '        if data:\n',
         '        if data and data[-1] != 10:\n            return\n        if data:\n'),
        ('test_every_byte_in_order', 'answer(data))', 'answer(data[:30000]))'),
        ('test_half_close_while_much_is_unsent', '= data[sent:]', '= data[sent + 1:]'),
        ('test_resets', 'only this one ends\n        pass', 'only this one ends\n        raise'),
        ('test_stalled_reader', 'sent = conn.send(data)\n',
         'conn.setblocking(True)\n        conn.sendall(data)\n        sent = len(data)\n'),
        ('test_out_of_descriptors',
         '    rlist.remove(listener)\n    resume_at = time.monotonic() + RETRY_DELAY\n', ''),
        ('test_accept_fails_with_nobody_connected', '    report_accept_error(error)\n', ''),
        ('test_accept_fails_with_nobody_connected',
         '        return\n    rlist.append(listener)\n', '        return\n'),
        ('test_accept_fails_for_ever', '(ConnectionError, BlockingIOError)', 'OSError'),
        ('test_not_yet', '    except BlockingIOError:         # a false alarm',
         '    except ZeroDivisionError:       # a false alarm'),
        ('test_not_yet', '    except BlockingIOError:\n        sent = 0\n',
         '    except ZeroDivisionError:\n        sent = 0\n'),
        ('test_no_leaks', '    unsent.pop(conn, None)\n    conn.close()\n',
         '    unsent[conn] = b""\n'),
        ('test_500_at_once', 'listen(max(socket.SOMAXCONN, 4096))', 'listen(5)'),
        ('test_ctrl_c', "print_line('stopped')", "print_line('halted')"),
        ('test_sigterm', "('SIGINT', 'SIGTERM', ", "('SIGINT', "),
        ('test_starts_again_on_the_same_port', 'SO_REUSEADDR, 1', 'SO_REUSEADDR, 0'),
        ('test_first_line', "'listening on {address} (", "'Listening, listening on {address} ("),
        ('test_ipv6', "'[{}]:{}' if", "'{}:{}' if"),
        ('test_idle', 'RETRY_DELAY if resume_at else None', '0'),
        ('test_waiting_answer', 'def read(conn):',
         'def read(conn):\n    threading.Thread(target=read_now, args=(conn,)).start()\n'
         '    time.sleep(0.01)\n\n\ndef read_now(conn):'),
    ]
    POSIX_ONLY = ['test_resets', 'test_sigterm', 'test_500_at_once', 'test_out_of_descriptors',
                  'test_accept_fails_with_nobody_connected', 'test_accept_fails_for_ever',
                  'test_not_yet', 'test_starts_again_on_the_same_port']
    LINUX_ONLY = ['test_idle', 'test_no_leaks']

    def test_each_mutation_is_caught(self):
        todo = [each for each in self.MUTATIONS if LINUX or each[0] not in self.LINUX_ONLY
                and (POSIX or each[0] not in self.POSIX_ONLY)]
        copies = [(name, old, patched_copy(self, 'select_server.py', (old, new)))
                  for name, old, new in todo]
        missed = []

        def work():
            while copies:
                name, old, path = copies.pop(0)
                if not self.caught(name, path):
                    missed.append((name, old))
        workers = [threading.Thread(target=work) for _ in range(6)]     # mostly they wait
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(missed, [])

    def caught(self, name, path):
        """Return whether the test NAME of the contract fails against the server at PATH. A test
        that looks for something to happen may look longer here than with a good server."""
        traits = {'script': path, 'loop': True, 'timeout': 1.5, 'quiet': 0.5,
                  'idle_seconds': 1, 'crowd_seconds': 0.8}
        mutant = type('Mutant', (Contract, ServerTest), traits)
        result = unittest.TestResult()
        unittest.defaultTestLoader.suiteClass([mutant(name)]).run(result)
        cannot_tell = not POSIX and result.skipped      # such as Ctrl-Break without a console
        return result.failures or result.errors or cannot_tell


# ---- the README

class ReadmeTest(unittest.TestCase):

    def setUp(self):
        self.readme = read_source('README.md')

    def assert_named(self, word, where):
        self.assertTrue(word in self.readme, f'README does not tell of {word} of {where}')

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def arguments(script, *command):
        shown = run(script, *command, '--help').stdout.decode()
        options = re.split(r'\n(?:options|optional arguments):', shown)[-1]
        return set(re.findall(r'(?<![\w-])(--?[a-z][a-z-]*)', options))

    def test_every_argument_is_named(self):
        commands = [['client.py', each] for each in ('chat', 'load', 'figure', 'compare')]
        for words in [[script] for script in SERVERS] + commands:
            for argument in self.arguments(*words) - {'-h', '--help'}:
                self.assert_named(argument, words)

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

    def test_every_script_mode_and_selector_is_named(self):
        for script in SCRIPTS:
            self.assert_named(script, ['the folder'])
        for script in SERVERS:
            choices = re.findall(r'\{([a-z_,]+)\}', run(script, '--help').stdout.decode())
            for choice in ','.join(choices).split(','):
                self.assert_named(choice, [script])

    def test_excerpts_stand_in_the_scripts(self):
        """Each block of Python on the page is a part of a script, to the letter."""
        sources = [read_source(script) for script in SCRIPTS]
        excerpts = re.findall(r'^```python\n(.*?)^```$', self.readme, flags=re.M | re.S)
        self.assertGreater(len(excerpts), 5)
        for excerpt in excerpts:
            indented = [textwrap.indent(excerpt, depth * ' ') for depth in range(0, 20, 4)]
            self.assertTrue([1 for each in indented for source in sources if each in source],
                            excerpt)

    def test_named_tests_exist(self):
        tests = read_source('test_all.py')
        for name in set(re.findall(r'\btest_\w+', self.readme)) - {'test_all'}:
            self.assertTrue(f'def {name}(' in tests, name)

    def test_no_line_of_prose_is_longer_than_100_columns(self):
        prose = re.sub(r'^```.*?^```$', '', self.readme, flags=re.M | re.S)
        for line in prose.splitlines():
            if not line.startswith(('|', '    ')):
                self.assertLessEqual(len(line), 100, line)


if __name__ == '__main__':
    unittest.main()

"""Proves every server on this machine: python -m unittest (or -v, or -k stalled, or test_all.SelectTest).

One table of tests, `Contract`, runs against every server and mode of the folder; then comes what is particular to each
model, the trace, the client, and the README. `BadServerTest` runs the same table against servers that are wrong on
purpose, and sees each of them caught.

Nothing here waits by the clock for what has an event: tests wait for lines, for bytes, for connections to end. Times
are asserted with a wide margin, since machines are shared; speed is the business of client.py load and compare.
"""
import ast
import errno
import functools
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

import client
from client import FOLDER, Server

POSIX = os.name == 'posix'
LINUX = sys.platform.startswith('linux')
PATIENCE = 10       # seconds until a test takes "not yet" for "never"
RESET = struct.pack('ii', 1, 0) if POSIX else struct.pack('hh', 1, 0)   # SO_LINGER: close by a reset
SCRIPTS = ['blocking_server.py', 'nonblocking_server.py', 'select_server.py', 'selectors_server.py', 'async_server.py',
           'socketserver_server.py']


def connect(server, timeout=PATIENCE):
    sock = socket.create_connection(server.address, timeout)
    return sock


def receive(sock, count):
    """Return COUNT bytes, or fewer if the other side ends before."""
    data = b''
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def receive_all(sock):
    return b''.join(iter(lambda: sock.recv(65536), b''))


def ask(sock, data=b'hello'):
    sock.sendall(data)
    return receive(sock, len(data))


def some_bytes(count):
    return random.Random(count).getrandbits(8 * count).to_bytes(count, 'little')


def stall(sock, quiet=0.12):
    """Send to a server until nothing has gone for QUIET seconds, and read nothing; return what was sent."""
    sock.setblocking(False)
    sent = bytearray()
    chunk = some_bytes(65536)
    while select.select([], [sock], [], quiet)[1] and len(sent) < 200 << 20:
        try:
            sent += chunk[:sock.send(chunk)]
        except BlockingIOError:
            pass
    sock.settimeout(PATIENCE)
    return bytes(sent)


def wait_until(condition, timeout=PATIENCE):
    """Wait for what has no event of its own, such as the number of another process's descriptors."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def descriptors(server):
    return len(os.listdir(f'/proc/{server.pid}/fd'))


def run(*command, **options):
    """Run a command to its end; return it with what it printed as bytes."""
    options = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'timeout': 60, **options}
    if 'input' in options:
        del options['stdin']
    return subprocess.run([sys.executable, *command], cwd=FOLDER, **options)


def rest(server):
    """Return the lines that a server prints from now until its end."""
    lines = []
    while server.open:
        line = server.lines.get(timeout=PATIENCE)
        server.open -= line is None
        lines.append(line)
    return [line for line in lines if line is not None]


class Contract:
    """What every server must hold, under use and abuse alike. Subclasses say which server, and what its model allows."""
    script, arguments = '', ()
    parallel = True         # a client that sits there keeps nobody waiting
    loop = False            # one thread for all: a slow answer keeps everybody waiting
    polls = False           # burns a processor while idle
    forks = False           # each client has a process of its own
    patience = PATIENCE
    quiet = 0.12            # seconds after which a connection that takes nothing more is stalled

    @classmethod
    def setUpClass(cls):
        client.file_limit()
        cls.server = Server(cls.script, *cls.arguments)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def boot(self, *arguments, **options):
        server = Server(self.script, *self.arguments, *arguments, **options)
        self.addCleanup(server.stop)
        return server

    def connect(self, server=None):
        sock = connect(server or self.server, self.patience)
        self.addCleanup(sock.close)
        return sock

    def assert_serves(self, server=None):
        with connect(server or self.server, self.patience) as sock:
            self.assertEqual(ask(sock, b'still there?'), b'STILL THERE?')

    def assert_idle(self, server, seconds=0.15):
        """The server uses next to no CPU, though something might keep it busy. (Linux: elsewhere not finely enough.)"""
        if LINUX and not self.polls:
            before = client.cpu(server.pid)
            time.sleep(seconds)
            self.assertLess(client.cpu(server.pid) - before, 0.4 * seconds, 'it spins')

    # the conversation

    def test_answers_in_upper_case(self):
        every = bytes(range(256)) + 'groß, 大写 and \u0131'.encode()
        sock = self.connect()
        self.assertEqual(ask(sock, every), every.upper())
        self.assertEqual(ask(sock, b'\0'), b'\0')

    def test_answers_at_once(self):
        """No newline is waited for: the notes' own clients send none, and read once."""
        sock = self.connect()
        for message in b'hello', b'a', 'ünï'.encode(), b'GET / HTTP/1.0\r\n\r\n':
            sock.sendall(message)
            self.assertEqual(sock.recv(1024), message.upper())

    def test_every_byte_in_order(self):
        """2 MB in pieces of all sizes, then half-close: all of it comes back, and then the end."""
        data = some_bytes(2 << 20)
        sock = self.connect()

        def send():
            start, sizes = 0, random.Random(4)
            while start < len(data):
                size = sizes.choice([1, 10, 1000, 100000])
                sock.sendall(data[start:start + size])
                start += size
            sock.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send)
        sender.start()
        came = receive_all(sock)
        sender.join()
        self.assertEqual(len(came), len(data))
        self.assertEqual(came, data.upper())

    def test_half_close_while_much_is_owed(self):
        """The client sends, half-closes, and begins to read only then: nothing may be lost."""
        sock = self.connect()
        sent = stall(sock, self.quiet)
        more = threading.Thread(target=lambda: (sock.sendall(b'the end'), sock.shutdown(socket.SHUT_WR)))
        more.start()
        came = receive_all(sock)
        more.join()
        self.assertEqual(len(came), len(sent) + 7)
        self.assertEqual(came, sent.upper() + b'THE END')

    # abuse

    def test_resets(self):
        """A client that resets, with an answer under way or without, costs only its own connection."""
        for message in 2 * [b'', b'x', b'x' * 300000]:      # twice: on a busy machine a reset may arrive late
            with self.connect() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                if message:
                    sock.setblocking(False)
                    sock.send(message)
            self.assert_serves()

    def test_reset_while_stalled(self):
        with self.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            stall(sock, self.quiet)
        self.assert_serves()
        self.assert_idle(self.server)

    def test_connects_and_leaves(self):
        for _ in range(50):
            self.connect().close()
        self.assert_serves()

    def test_stalled_reader(self):
        """Who sends and never reads is throttled; others are served; nothing spins; at last it gets every byte."""
        server = self.boot()
        self.assert_serves(server)
        before = client.memory(server.pid) if LINUX else 0
        sock = self.connect(server)
        sent = stall(sock, self.quiet)
        if LINUX:
            self.assertLess(client.memory(server.pid) - before, 16 << 20, 'it stores what is not read')
        self.assert_idle(server)
        if self.parallel:
            self.assert_serves(server)
        self.assertEqual(receive(sock, len(sent)), sent.upper())

    def test_500_at_once(self):
        """500 connect at the same instant and each says something: all are answered, and soon."""
        socks, answered = {}, 0
        for number in range(500):
            sock = socket.socket()
            self.addCleanup(sock.close)
            sock.setblocking(False)
            sock.connect_ex(self.server.address)
            socks[sock] = b'number %d' % number
        unsaid, end = dict(socks), time.monotonic() + min(self.patience, 6)
        sel = client.selectors.DefaultSelector()
        self.addCleanup(sel.close)
        if len(socks) > 500 - 12 and isinstance(sel, client.selectors.SelectSelector):
            for sock in list(socks)[480:]:      # Windows: our own select holds 512
                sock.close()
                del socks[sock], unsaid[sock]
        for sock in socks:
            sel.register(sock, client.selectors.EVENT_WRITE)
        while socks and time.monotonic() < end:
            for key, mask in sel.select(0.5):
                sock = key.fileobj
                if sock in unsaid:
                    sock.send(unsaid.pop(sock))
                    sel.modify(sock, client.selectors.EVENT_READ)
                    continue
                self.assertEqual(sock.recv(100), socks.pop(sock).upper())
                sel.unregister(sock)
                sock.close()
                answered += 1
        self.assertFalse(socks, f'{len(socks)} had no answer, {answered} had')

    @unittest.skipUnless(POSIX, 'Windows has no limit of open files')
    def test_out_of_descriptors(self):
        """Those connected are served, one line says so, nothing spins, and who waits is taken when somebody leaves."""
        if self.forks or not self.parallel:
            self.skipTest('this model does not hold many descriptors')
        server = self.boot(before=['sh', '-c', 'ulimit -n 40; exec "$@"', 'sh'])
        socks = [self.connect(server) for _ in range(60)]
        server.expect('no room for another client')
        self.assertEqual(ask(socks[0]), b'HELLO')
        self.assert_idle(server)
        self.assertEqual(ask(socks[0]), b'HELLO')
        for sock in socks[:-1]:
            sock.close()
        self.assertEqual(ask(socks[-1]), b'HELLO')
        self.assert_serves(server)
        server.stop()
        self.assertFalse([line for line in rest(server) if 'no room' in line], 'it says so again and again')

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_no_leaks(self):
        """After many have come and gone nothing is left of them: no descriptor, thread, or zombie."""
        def held():
            return descriptors(self.server), client.threads(self.server.pid), len(client.family(self.server.pid))
        self.assert_serves()
        wait_until(lambda: self.server.pid and held()[2] == 1, 3)
        before = held()
        for number in range(150):
            with self.connect() as sock:
                if number % 3:
                    sock.sendall(b'x')
                if number % 3 == 2:
                    self.assertEqual(sock.recv(1), b'X')
        self.assert_serves()
        self.assertTrue(wait_until(lambda: held() <= before, self.patience), f'{before} before, {held()} after')

    # arguments, start and stop

    def test_idle(self):
        """While nobody speaks a server sleeps. (Polling: see NonblockingTest.)"""
        self.connect()
        self.assert_idle(self.server)

    def stopped_by(self, number):
        options = {} if POSIX else {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP}
        server = self.boot('--work', '20', **options)
        idle, slow, stalled = self.connect(server), self.connect(server), self.connect(server)
        if self.parallel:
            slow.sendall(b'compute')
        stalled.setblocking(False)
        stalled.send(b'x' * 10000)
        if self.forks:
            self.assertTrue(wait_until(lambda: not LINUX or len(client.family(server.pid)) == 4))
        children = client.family(server.pid)[1:] if LINUX else []
        start = time.monotonic()
        try:
            server.process.send_signal(number)
        except OSError as error:
            self.skipTest(f'no Ctrl-Break can be sent here: {error}')
        if POSIX:
            server.process.send_signal(signal.SIGTERM)      # somebody is impatient
        self.assertEqual(server.process.wait(self.patience), 0)
        self.assertLess(time.monotonic() - start, 3)
        self.assertEqual(rest(server), ['stopped'])
        self.assertFalse([pid for pid in children if os.path.exists(f'/proc/{pid}')])
        try:
            self.assertEqual(idle.recv(1), b'')
        except ConnectionResetError:
            pass        # it had not been accepted yet

    def test_ctrl_c(self):
        self.stopped_by(signal.SIGINT if POSIX else signal.CTRL_BREAK_EVENT)

    @unittest.skipUnless(POSIX, 'Windows has no SIGTERM')
    def test_sigterm(self):
        self.stopped_by(signal.SIGTERM)

    def test_starts_again_on_the_same_port(self):
        server = self.boot()
        with self.connect(server) as sock:
            self.assertEqual(ask(sock), b'HELLO')
            server.stop()
            again = self.boot('--port', str(server.address[1]))
            self.assertEqual(again.address, server.address)
            self.assert_serves(again)

    def test_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6) as sock:
                sock.bind(('::1', 0))
        except OSError as error:
            self.skipTest(f'no IPv6 here: {error}')
        server = self.boot('--host', '::1')
        self.assertRegex(server.seen[-1], r'^listening on \[::1\]:\d+ \(.*; Ctrl-C stops\)$')
        self.assert_serves(server)

    def test_first_line(self):
        self.assertRegex(self.server.seen[0], r'^listening on 127\.0\.0\.1:\d+ \([ -~]+; Ctrl-C stops\)$')

    def test_slow_answer(self):
        """One slow answer (--work) holds up everybody in a loop, and nobody who has a thread or process."""
        server = self.boot('--work', '0.3')
        first, second = self.connect(server), self.connect(server)
        first.sendall(b'slow')
        if self.loop:       # only when it has gone to work can the second be held up
            wait_until(lambda: not LINUX or client.stat(server.pid)[0] == 'S')
            time.sleep(0.05)
        start = time.monotonic()
        second.sendall(b'me too')
        self.assertEqual(receive(first, 4), b'SLOW')
        first.close()
        self.assertEqual(receive(second, 6), b'ME TOO')
        took = time.monotonic() - start
        if self.loop or not self.parallel and 'pool' not in self.arguments:
            self.assertGreater(took, 0.5)
        else:
            self.assertLess(took, 0.5)


def variant(name, script, *arguments, without=None, **traits):
    """Make a test class of the contract for one server and mode; WITHOUT is why this platform does not have it."""
    test = type(name, (Contract, unittest.TestCase), {'script': script, 'arguments': arguments, **traits})
    globals()[name] = unittest.skipIf(without, without)(test)


no_fork = None if hasattr(os, 'fork') else 'this platform has no os.fork'
variant('BlockingSerialTest', 'blocking_server.py', '--mode', 'serial', parallel=False)
variant('BlockingThreadTest', 'blocking_server.py')
variant('BlockingProcessTest', 'blocking_server.py', '--mode', 'process', forks=True, without=no_fork)
variant('BlockingPoolTest', 'blocking_server.py', '--mode', 'pool', '--pool-size', '3', parallel=False)
variant('NonblockingTest', 'nonblocking_server.py', loop=True, polls=True)
variant('NonblockingPauseTest', 'nonblocking_server.py', '--pause', '0.001', loop=True)
variant('SelectTest', 'select_server.py', loop=True)
for kind in 'epoll', 'kqueue', 'devpoll', 'poll', 'select':
    variant(f'Selectors{kind.title()}Test', 'selectors_server.py', '--suffix=', '--selector', kind, loop=True,
            without=None if hasattr(select, kind) else f'this platform has no {kind}')
no_ring = re.findall('no io_uring here: (.*);', run('async_server.py', '--engine', 'io_uring', '--host', '?').stderr.decode())
variant('AsyncAsyncioTest', 'async_server.py', '--engine', 'asyncio', loop=True)
variant('AsyncIoUringTest', 'async_server.py', '--engine', 'io_uring', loop=True, without=''.join(no_ring) or None)
variant('SocketserverSerialTest', 'socketserver_server.py', '--mode', 'serial', parallel=False)
variant('SocketserverThreadTest', 'socketserver_server.py')
variant('SocketserverProcessTest', 'socketserver_server.py', '--mode', 'process', forks=True, without=no_fork)


# ---- what is particular to each model ----

def altered(case, script, old='', new='', before=''):
    """Return the path of a copy of SCRIPT with OLD replaced by NEW, and the code BEFORE run first: a stand-in."""
    with open(os.path.join(FOLDER, script), encoding='utf-8') as file:
        source = file.read()
    case.assertIn(old, source)
    folder = tempfile.TemporaryDirectory()
    case.addClassCleanup(folder.cleanup) if isinstance(case, type) else case.addCleanup(folder.cleanup)
    path = os.path.join(folder.name, script)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(textwrap.dedent(before) + '\n' + source.replace(old, new))
    return path


class ModelTest(unittest.TestCase):
    """Base of what follows: it boots servers and connects, and cleans up."""

    def boot(self, script, *arguments, **options):
        server = Server(script, *arguments, **options)
        self.addCleanup(server.stop)
        return server

    def connect(self, server, timeout=PATIENCE):
        sock = connect(server, timeout)
        self.addCleanup(sock.close)
        return sock

    def assert_waits(self, sock):
        sock.settimeout(0.3)
        with self.assertRaises(socket.timeout):
            sock.recv(1)
        sock.settimeout(PATIENCE)


class BlockingModelTest(ModelTest):

    def test_serial_second_client_waits_until_the_first_leaves(self):
        for script in 'blocking_server.py', 'socketserver_server.py':
            server = self.boot(script, '--mode', 'serial')
            first, second = self.connect(server), self.connect(server)
            self.assertEqual(ask(first), b'HELLO')
            second.sendall(b'me?')
            self.assert_waits(second)
            first.close()
            self.assertEqual(receive(second, 3), b'ME?')

    def test_pool_of_n_client_n_plus_1_waits(self):
        server = self.boot('blocking_server.py', '--mode', 'pool', '--pool-size', '3')
        served = [self.connect(server) for _ in range(3)]
        for sock in served:
            self.assertEqual(ask(sock), b'HELLO')
        fourth = self.connect(server)
        fourth.sendall(b'me?')
        self.assert_waits(fourth)
        served[1].close()
        self.assertEqual(receive(fourth, 3), b'ME?')

    def test_no_thread_to_be_had(self):
        """That client is refused with a line; those connected, and who comes later, are served."""
        refusing = '''
            import threading
            start, started = threading.Thread.start, []
            def start_or_refuse(self):
                started.append(1)
                if len(started) == 2:
                    raise RuntimeError("can't start new thread")
                start(self)
            threading.Thread.start = start_or_refuse
            '''
        for script in 'blocking_server.py', 'socketserver_server.py':
            server = self.boot(altered(self, script, before=refusing))
            if not POSIX:
                continue        # there the first thread is the server's own
            first, second, third = self.connect(server), self.connect(server), self.connect(server)
            self.assertEqual(ask(first), b'HELLO')
            server.expect(r"^refused 127\.0\.0\.1:\d+: .*can't start new thread")
            self.assertEqual(second.recv(1), b'')
            self.assertEqual(ask(third) + ask(first), b'HELLOHELLO')

    @unittest.skipIf(no_fork, no_fork)
    def test_no_process_to_be_had(self):
        refusing = '''
            import os
            real_fork, forked = os.fork, []
            def fork_or_refuse():
                forked.append(1)
                if len(forked) == 2:
                    raise BlockingIOError(11, 'Resource temporarily unavailable')
                return real_fork()
            os.fork = fork_or_refuse
            '''
        for script in 'blocking_server.py', 'socketserver_server.py':
            server = self.boot(altered(self, script, before=refusing), '--mode', 'process')
            first, second, third = self.connect(server), self.connect(server), self.connect(server)
            self.assertEqual(ask(first), b'HELLO')
            server.expect(r'^refused 127\.0\.0\.1:\d+: .*Resource temporarily unavailable')
            self.assertEqual(second.recv(1), b'')
            self.assertEqual(ask(third) + ask(first), b'HELLOHELLO')

    @unittest.skipUnless(POSIX, 'on Windows the first thread is the server itself')
    def test_no_pool_to_be_had(self):
        refusing = '''
            import threading
            def refuse(self):
                raise RuntimeError("can't start new thread")
            threading.Thread.start = refuse
            '''
        ended = run(altered(self, 'blocking_server.py', before=refusing), '--mode', 'pool', '--port', '0')
        self.assertEqual(ended.returncode, 1)
        self.assertRegex(ended.stderr.decode(), r"^no pool of 4 threads here \(can't start new thread\).*--pool-size\r?\n$")


class NonblockingModelTest(ModelTest):

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_polling_burns_a_core_and_pause_tames_it(self):
        for pause, test in ('0', self.assertGreater), ('0.05', self.assertLess):
            server = self.boot('nonblocking_server.py', '--pause', pause)
            self.connect(server)
            before = client.cpu(server.pid)
            time.sleep(0.3)
            test(client.cpu(server.pid) - before, 0.1)

    def test_pause_answers_late(self):
        sock = self.connect(self.boot('nonblocking_server.py', '--pause', '0.2'))
        ask(sock)
        start = time.monotonic()
        for _ in range(3):
            ask(sock)
        self.assertGreater(time.monotonic() - start, 0.4)


class SelectorsModelTest(ModelTest):

    def test_suffix_counts_the_reads(self):
        """TCP has no messages: what was sent in three is read in one, or the other way round."""
        server = self.boot('selectors_server.py')
        sock = self.connect(server)
        sock.sendall(b'hello')
        self.assertEqual(receive(sock, 8), b'HELLO_SB')
        sock.sendall(b'a' * 100000)
        sock.shutdown(socket.SHUT_WR)
        came = receive_all(sock)
        reads = came.count(b'_SB')
        self.assertEqual(came.replace(b'_SB', b''), b'A' * 100000)
        self.assertGreater(reads, 100000 // 70000)
        self.assertTrue(came.endswith(b'_SB'))

    def test_own_suffix(self):
        sock = self.connect(self.boot('selectors_server.py', '--suffix', ' <eh>'))
        self.assertEqual((sock.sendall(b'hi'), receive(sock, 7))[1], b'HI <eh>')

    def test_a_selector_that_is_not_here(self):
        for kind in 'epoll', 'kqueue', 'devpoll', 'poll':
            if not hasattr(select, kind):
                ended = run('selectors_server.py', '--selector', kind)
                self.assertEqual(ended.returncode, 1)
                self.assertRegex(ended.stderr.decode(), rf'^this platform has no {kind}; --selector takes here: default.*\n$')


class SelectLimitTest(ModelTest):

    @unittest.skipUnless(POSIX, 'on Windows it counts sockets: see test_512_sockets')
    def test_descriptors_from_1024_on(self):
        """Who select cannot watch is refused with a line that says why; everyone else goes on."""
        hold = '''
            import os, resource
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(1100, hard) if hard > 0 else 1100, hard))
            while os.open(os.devnull, os.O_RDONLY) < 1019:
                pass
            '''
        if client.file_limit() < 1100:
            self.skipTest('the hard limit of open files is below 1100')
        for script, arguments in ('select_server.py', ()), ('selectors_server.py', ('--selector', 'select', '--suffix=')):
            server = self.boot(altered(self, script, before=hold), *arguments)
            socks = [self.connect(server) for _ in range(6)]
            server.expect(r'^refused 127\.0\.0\.1:\d+: .*cannot watch it beside the others \(filedescriptor out of range')
            self.assertEqual(ask(socks[0]), b'HELLO')
            self.assertEqual(socks[-1].recv(1), b'')
            socks[0].close()
            self.assertEqual(ask(socks[1]), b'HELLO')
            self.assertEqual(ask(self.connect(server)), b'HELLO')

    @unittest.skipIf(POSIX, 'on POSIX it looks at the number of the descriptor')
    def test_512_sockets(self):
        server = self.boot('select_server.py')
        socks = [self.connect(server) for _ in range(520)]
        server.expect(r'^refused 127\.0\.0\.1:\d+: .*cannot watch it beside the others \(too many file descriptors')
        self.assertEqual(ask(socks[0]), b'HELLO')


class AsyncModelTest(ModelTest):
    """Engines, and the ring under strain."""
    refuse = '''
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
        """A seccomp filter, as in a container: auto falls back and says why, io_uring is an error in words."""
        for number, reason in (errno.EPERM, 'refused, by a container or'), (errno.ENOSYS, 'this kernel has none'), \
                (errno.EINVAL, 'needs Linux 6.1'), (errno.ENOMEM, 'Cannot allocate memory'):
            path = altered(self, 'async_server.py', before=self.refuse.format(number))
            try:
                server = self.boot(path)
            except RuntimeError as error:
                self.skipTest(str(error))
            self.assertIn(f'(asynchronous, asyncio on a selector: readiness; no io_uring: {reason}', server.seen[0])
            self.assertEqual(ask(self.connect(server)), b'HELLO')
            ended = run(path, '--engine', 'io_uring', '--port', '0')
            self.assertEqual(ended.returncode, 1)
            self.assertRegex(ended.stderr.decode(), f'^there is no io_uring here: {reason}.*; take --engine asyncio\n$')

    @unittest.skipIf(LINUX, 'here io_uring may be had')
    def test_platform_without_io_uring(self):
        self.assertIn('no io_uring: it needs Linux', self.boot('async_server.py').seen[0])
        self.assertEqual(run('async_server.py', '--engine', 'io_uring').returncode, 1)

    @unittest.skipIf(no_ring, 'no io_uring here')
    def test_ctrl_c_with_thousands_in_flight(self):
        number = min(4000, client.file_limit() - 100)
        server = self.boot('async_server.py', '--engine', 'io_uring')
        idle, errors = client.sit(client.resolve(*server.address), number)
        self.addCleanup(lambda: [sock.close() for sock in idle])
        self.assertTrue(client.answered(idle[-1:], PATIENCE))
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        self.assertEqual(server.process.wait(PATIENCE), 0)
        self.assertLess(time.monotonic() - start, 2)

    @unittest.skipIf(no_ring, 'no io_uring here')
    def test_auto_takes_io_uring(self):
        self.assertIn('(asynchronous, io_uring: completion; Ctrl-C stops)', self.boot('async_server.py').seen[0])


class AsyncTinyRingTest(Contract, unittest.TestCase):
    """The whole contract on a ring so small that every queue overflows and every buffer is in use all the time."""
    loop = True

    @classmethod
    def setUpClass(cls):
        if no_ring:
            raise unittest.SkipTest('no io_uring here')
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        with open(os.path.join(FOLDER, 'async_server.py')) as file:
            source, count = re.subn(r'(SQ_ENTRIES, CQ_ENTRIES, BUFFERS =) \d+, \d+, \d+', r'\1 4, 8, 2', file.read())
        assert count == 1
        cls.script, cls.arguments = os.path.join(folder.name, 'async_server.py'), ('--engine', 'io_uring')
        with open(cls.script, 'w') as file:
            file.write(source)
        super().setUpClass()


class OperatorTest(ModelTest):
    """socketserver_server.py as in the notes: an operator types the answers."""

    def boot(self, *arguments):
        server = super().boot('socketserver_server.py', '--reply', 'operator', *arguments, stdin=subprocess.PIPE)
        self.addCleanup(server.process.stdin.close)
        self.assertIn('an operator answers', server.seen[0])
        return server

    def type(self, server, line):
        server.process.stdin.write(line)
        server.process.stdin.flush()

    def modes(self):
        return ['thread', 'serial'] + ['process'] * hasattr(os, 'fork')

    def test_operator_answers(self):
        for mode in self.modes():
            server = self.boot('--mode', mode)
            sock = self.connect(server)
            sock.sendall('hi \x1b[2J 世'.encode())
            self.assertEqual(server.expect("127.0.0.1:[0-9]+ says (.*)")[1], repr('hi \x1b[2J 世') if POSIX else mock_repr())
            self.type(server, b'\n  \nhello yourself\n')
            self.assertEqual(receive(sock, 14), b'hello yourself')
            sock.sendall(b'exit')
            self.assertEqual(sock.recv(1), b'')

    def test_one_prompt_at_a_time(self):
        for mode in self.modes():
            if mode == 'serial':
                continue
            server = self.boot('--mode', mode)
            socks = {}
            for _ in range(3):
                sock = self.connect(server)
                socks['%s:%d' % sock.getsockname()] = sock
                sock.sendall(b'hi')
            for number in range(3):
                asked = server.expect(r'(\S+) says')[1]
                self.assertEqual(select.select(list(socks.values()), [], [], 0.05)[0], [])
                self.assertFalse([line for line in server.seen if line.count('says') > 1])
                self.type(server, b'answer %d\n' % number)
                self.assertEqual(receive(socks.pop(asked), 8), b'answer %d' % number)

    def test_operator_leaves(self):
        for mode in self.modes():
            server = self.boot('--mode', mode)
            sock = self.connect(server)
            sock.sendall(b'hi')
            server.expect('says')
            server.process.stdin.close()
            server.expect('the operator has left')
            self.assertEqual(receive(sock, 2), b'HI')
            self.assertEqual(ask(sock), b'HELLO')

    def test_client_goes_away(self):
        """The notes' listing would ask the operator for ever."""
        server = self.boot()
        self.connect(server).close()
        sock = self.connect(server)
        sock.sendall(b'hi')
        server.expect('says')
        self.type(server, b'still here\n')
        self.assertEqual(receive(sock, 10), b'still here')
        server.stop()
        self.assertFalse([line for line in rest(server) if "says ''" in line])

    @unittest.skipUnless(POSIX, 'needs a shell')
    def test_operator_without_an_input(self):
        """Closed, or one that cannot be read: nobody can be asked, so the answers are in upper case, and it is said."""
        for command in 'exec "$@" <&-', 'exec "$@" 0>/dev/null':
            server = ModelTest.boot(self, 'socketserver_server.py', '--reply', 'operator', before=['sh', '-c', command, 'sh'])
            self.assertEqual(ask(self.connect(server)), b'HELLO')
            server.expect('the operator has left: from now on')

    @unittest.skipUnless(POSIX, 'needs a pseudo-terminal')
    def test_operator_at_a_terminal(self):
        """At a terminal the operator is the default."""
        import pty
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        server = ModelTest.boot(self, 'socketserver_server.py', stdin=slave)
        os.close(slave)
        self.assertIn('an operator answers', server.seen[0])
        sock = self.connect(server)
        sock.sendall(b'hi')
        server.expect('says')
        os.write(master, b'good day\n')
        self.assertEqual(receive(sock, 8), b'good day')


def mock_repr():
    """What a Windows console of an old code page can show of it."""
    return "'hi \\x1b[2J \\u4e16'"


# ---- arguments and errors, in words ----

class ArgumentsTest(ModelTest):

    def test_errors_in_words(self):
        """One line that names the address or the value; no traceback; status 2 for usage, 1 otherwise."""
        taken = self.boot('select_server.py')
        port = str(taken.address[1])
        cases = ((('--port', port), 1, rf"^cannot listen on host '127\.0\.0\.1', port {port}: .+\n$"),
                 (('--port', '65536'), 2, '65536 is not between 0 and 65535'),
                 (('--port', 'http'), 2, "'http'"),
                 (('--host', 'no.such.host.invalid'), 1, "^cannot listen on host 'no.such.host.invalid', .+\n$"),
                 (('--host', '192.0.2.1'), 1, r"^cannot listen on host '192\.0\.2\.1', .+\n$"),
                 (('--host', 'x' * 70 + '.com'), 1, '^cannot listen on host .+\n$'),
                 (('--work', 'nan'), 2, 'nan is not between'),
                 (('--work', '-1'), 2, '-1 is not between'),
                 (('--nonsense',), 2, 'unrecognized arguments: --nonsense'))
        for number, (arguments, status, words) in enumerate(cases):     # each case with two servers, the first with all
            for script in SCRIPTS:
                if number == 0 or script in (SCRIPTS[number % 6], SCRIPTS[(number + 3) % 6]):
                    with self.subTest(script=script, arguments=arguments):
                        ended = run(script, '--port', '0', *arguments)
                        self.assertEqual(ended.returncode, status)
                        self.assertRegex(ended.stderr.decode().replace('\r', ''), words)
                        self.assertNotIn('Traceback', ended.stderr.decode())
                        self.assertEqual(ended.stdout, b'')

    @unittest.skipUnless(POSIX, 'needs POSIX signals')
    def test_ctrl_c_while_a_name_is_looked_up(self):
        for script in SCRIPTS:
            path = altered(self, script, before='''
import socket, time
def getaddrinfo(*arguments, **options):
    print('looking', flush=True)
    time.sleep(30)
socket.getaddrinfo = getaddrinfo
''')
            process = subprocess.Popen([sys.executable, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE)
            self.addCleanup(process.kill)
            self.assertEqual(process.stdout.readline(), b'looking\n')
            process.send_signal(signal.SIGINT)
            self.assertEqual((process.communicate(timeout=PATIENCE), process.returncode), ((b'', b''), 1))

    def test_what_fails_later_is_said_too(self):
        path = altered(self, 'select_server.py', 'rl, wl, xl = wait(', 'raise OSError(errno.ENOMEM, "no memory")\n        wait(')
        ended = run(path, '--port', '0')
        self.assertEqual(ended.returncode, 1)
        if POSIX:       # on Windows the traceback of a thread says it
            self.assertEqual(ended.stderr, b'cannot serve any longer: no memory\n')

    def test_help_shows_the_docstring(self):
        for script in SCRIPTS + ['client.py']:
            with open(os.path.join(FOLDER, script), encoding='ascii') as file:      # ASCII: any console can print it
                doc = ast.get_docstring(ast.parse(file.read()), clean=False)
            shown = run(script, '--help').stdout.decode('ascii').replace('\r', '')
            self.assertIn(doc.strip(), shown)

    def test_nobody_reads_the_output(self):
        """`python select_server.py | head -1`: the server goes on, and stops without a word."""
        if not POSIX:
            self.skipTest('needs POSIX signals')
        for script in SCRIPTS:
            process = subprocess.Popen([sys.executable, os.path.join(FOLDER, script), '--port', '0'], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.addCleanup(process.kill)
            with process.stderr:
                with process.stdout:
                    port = re.search(rb':(\d+) ', process.stdout.readline())[1]
                with socket.create_connection(('127.0.0.1', int(port)), PATIENCE) as sock:
                    self.assertEqual(ask(sock), b'HELLO')
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.stderr.read(), b'')
            self.assertEqual(process.wait(PATIENCE), 0)

    def test_what_all_servers_share_is_the_same(self):
        """So that a diff of two shows the model and nothing else."""
        shared = set()
        for script in SCRIPTS:
            with open(os.path.join(FOLDER, script)) as file:
                source = file.read()
            start = source.index('# ---- from here to the end of `run`')
            shared.add(source[start:source.index('cannot serve any longer', start)])
        self.assertEqual(len(shared), 1)

    def test_each_script_stands_alone(self):
        for script in SCRIPTS + ['client.py']:
            with open(os.path.join(FOLDER, script)) as file:
                for node in ast.walk(ast.parse(file.read())):
                    for name in [each.name for each in getattr(node, 'names', []) if isinstance(node, ast.Import)]:
                        self.assertFalse(os.path.exists(os.path.join(FOLDER, name + '.py')), f'{script} imports {name}')


# ---- the trace ----

class TraceTest(ModelTest):
    """What --trace draws is what was done: a client joins, waits 0.3 s, says hello, and leaves."""

    def traced(self, script, *arguments, say=b'hello'):
        """Return the lines that a server draws of such a conversation."""
        server = self.boot(script, '--trace', *arguments, *['--suffix='] * ('selectors' in script))
        with self.connect(server) as sock:
            server.expect('joined')
            time.sleep(0.3)
            sock.sendall(say)
            receive(sock, len(say))
        server.expect('the end: it has left')
        for line in server.seen:
            self.assertRegex(line, r'^( *\d+\.\d{3} s  (#\d+|- )  +[a-z]+ +[ -~]+|listening .*)$')
        return [line for line in server.seen if not line.startswith('listening')]

    def find(self, lines, pattern):
        """Return the groups of the first line that matches, and forget the lines up to it: the order is tested too."""
        while lines:
            match = re.search(pattern, lines.pop(0))
            if match:
                return match.groups()
        self.fail(f'no line has {pattern!r}')

    def assert_waited(self, words):
        number, unit = words
        self.assertTrue(0.25 < float(number) * {'s': 1, 'ms': 1e-3, 'us': 1e-6}[unit] < 3, words)

    SPAN = r'([\d.]+) (s|ms|us)'

    def test_blocking(self):
        for arguments in ([], ['--mode', 'serial'], ['--mode', 'pool']) + (([],) if no_fork else (['--mode', 'process'],)):
            lines = self.traced('blocking_server.py', *arguments)
            self.find(lines, r'#1 +accept +blocked .*, then 127\.0\.0\.1:\d+ joined')
            self.assert_waited(self.find(lines, rf"#1 +recv +blocked {self.SPAN}, then 5 bytes  b'hello'"))
            self.find(lines, r"#1 +sendall +blocked .*, then 5 bytes  b'HELLO'")
            self.find(lines, r'#1 +recv +blocked .*, then the end: it has left')

    def test_pool_shows_who_waits(self):
        server = self.boot('blocking_server.py', '--trace', '--mode', 'pool', '--pool-size', '1')
        first, second = self.connect(server), self.connect(server)
        server.expect('#2 +queue +put into it, 0 before it')
        time.sleep(0.3)
        first.close()
        self.assert_waited(server.expect(rf'#2 +queue +waited {self.SPAN} for a free worker').groups())

    def test_nonblocking(self):
        lines = self.traced('nonblocking_server.py')
        asked, number, unit, not_yet, worked = self.find(
            lines, rf'#1 +recv +asked (\d+) times in {self.SPAN}, (\d+) times "not yet" \(EAGAIN\), '
                   rf"other work done (\d+) times; copied in [\d.]+ (?:us|ms): 5 bytes  b'hello'")
        self.assert_waited((number, unit))
        self.assertGreater(int(not_yet), 1000)
        self.assertEqual(int(asked), int(not_yet) + 1)
        self.assertGreater(int(worked), 1000)

    def test_select_and_selectors(self):
        for script in 'select_server.py', 'selectors_server.py':
            lines = self.traced(script)
            self.find(lines, r'#1 +accept +.* joined')
            self.assert_waited(self.find(lines, rf'-  +select +waited {self.SPAN}, 1 of 2 sockets ready'))
            self.find(lines, r"#1 +recv +copied in [\d.]+ (?:us|ms): 5 bytes  b'hello'")

    def test_asynchronous(self):
        for engine, before, after in (('io_uring', 'submitted', 'completed after {}, in place'),
                                      ('asyncio', 'asked', 'ready after {}, then copied')):
            if engine == 'asyncio' and not POSIX:
                before, after = 'submitted', 'completed after {}, in place'
            if engine == 'asyncio' or not no_ring:
                lines = self.traced('async_server.py', '--engine', engine)
                self.assert_waited(self.find(
                    lines, rf"#1 +recv +{before} in [\d.]+ (?:us|ms), went on; {after.format(self.SPAN)}: 5 bytes  b'hello'"))

    def test_socketserver(self):
        lines = self.traced('socketserver_server.py')
        for call in 'socket', 'bind', 'listen', 'accept', 'handle':
            self.find(lines, f' {call} ')
        self.assert_waited(self.find(lines, rf"#1 +recv +blocked {self.SPAN}, then 5 bytes  b'hello'"))

    def test_two_clients_are_told_apart(self):
        for script in SCRIPTS:
            server = self.boot(script, '--trace')
            for number in 1, 2:
                sock = self.connect(server)
                sock.sendall(b'I am %d' % number)
                server.expect(rf"#{number} +recv .*b'I am {number}'")

    def test_control_characters_and_length(self):
        for script in SCRIPTS:
            lines = self.traced(script, say=b'\x1b[2J\xff\n' + b'x' * 1000)
            self.assertTrue([line for line in lines if r'\x1b[2J\xff\n' in line and line.endswith("...")])
            self.assertLess(max(map(len, lines)), 220)

    def test_figure_and_trace_use_the_same_words(self):
        for script, words in (('blocking', 'blocked'), ('nonblocking', 'not yet copied'), ('select', 'waited copied'),
                              ('selectors', 'waited copied'), ('async', 'submitted went on completed in place'),
                              ('socketserver', 'blocked')):
            with open(os.path.join(FOLDER, f'{script}_server.py')) as file:
                doc, code = file.read().split('"""\nimport', 1)
            for word in words.split():
                self.assertIn(word, doc)
                self.assertIn(word, code)


# ---- the client ----

class ClientTest(ModelTest):

    def client(self, server, *arguments, **options):
        return run('client.py', *arguments, '--port', str(server.address[1]), **options)

    def listen(self, *conversations):
        """Return something with the address of a server that holds each of these CONVERSATIONS with one client."""
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
        server = self.boot('select_server.py')
        long = 'x' * 20000
        ended = self.client(server, '-m', 'hello', '-m', '  ', '-m', 'größe', '-m', long)
        self.assertEqual(ended.stdout.decode().split(), ['HELLO', 'GRößE', long.upper()])
        self.assertEqual((ended.returncode, ended.stderr), (0, b''))

    def test_pipe(self):
        """30 MB of random bytes through every server, byte for byte."""
        data = some_bytes(30 << 20)
        for script in SCRIPTS:
            with self.subTest(script=script):
                server = self.boot(script, *(['--suffix='] if 'selectors' in script else []))
                ended = self.client(server, input=data)
                self.assertEqual(ended.stderr, b'')
                self.assertTrue(ended.stdout == data.upper(), f'{len(ended.stdout)} of {len(data)} bytes')
                self.assertEqual(ended.returncode, 0)

    def test_empty_pipe(self):
        self.assertEqual(self.client(self.boot('select_server.py'), input=b'').stdout, b'')

    @unittest.skipUnless(POSIX, 'Windows has no head')
    def test_nobody_reads_the_pipe(self):
        server = self.boot('select_server.py')
        command = f'{sys.executable} client.py --port {server.address[1]} < test_all.py | head -c 10'
        ended = subprocess.run(command, shell=True, cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((len(ended.stdout), ended.stderr), (10, b''))

    def test_server_goes_away(self):
        ended = self.client(self.listen(lambda conn: conn.recv(100)), '-m', 'hello', '-m', 'again')
        self.assertEqual((ended.returncode, ended.stdout), (1, b''))
        self.assertEqual(ended.stderr.split(), b'the server has closed the connection'.split())

    def test_server_resets_a_pipe(self):
        def converse(conn):
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            conn.recv(100)
        process = subprocess.Popen([sys.executable, 'client.py', '--port', str(self.listen(converse).address[1])], cwd=FOLDER,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(b'hi')
        process.stdin.flush()
        self.assertEqual(process.wait(PATIENCE), 1)     # though its input has not ended
        self.assertEqual(process.communicate()[1].split(), b'the server has closed the connection before it had everything'.split())

    @unittest.skipUnless(POSIX, 'needs a shell')
    def test_closed_output(self):
        """With standard output closed the answer is not lost in silence; with standard error closed nothing goes elsewhere."""
        server = self.boot('select_server.py')
        command = f'printf hello | {sys.executable} client.py --port {server.address[1]} >&-'
        ended = subprocess.run(command, shell=True, cwd=FOLDER, stderr=subprocess.PIPE)
        self.assertEqual((ended.returncode, ended.stderr), (1, b'cannot write to standard output: it is closed\n'))
        command = f'{sys.executable} client.py load --seconds 0.2 --json --port {server.address[1]} 2>&-'
        ended = subprocess.run(command, shell=True, cwd=FOLDER, stdout=subprocess.PIPE)
        self.assertEqual((ended.returncode, client.json.loads(ended.stdout)['errors']), (0, {}))

    @unittest.skipUnless(POSIX, 'needs POSIX pipes')
    def test_pipe_into_a_slow_reader(self):
        """Standard output may be a pipe that takes little at a time, and say so (O_NONBLOCK)."""
        data = some_bytes(1 << 20)
        server = self.boot('select_server.py')
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        process = subprocess.Popen([sys.executable, 'client.py', '--port', str(server.address[1])], cwd=FOLDER,
                                   stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        threading.Thread(target=lambda: (process.stdin.write(data), process.stdin.close())).start()
        with open(reading, 'rb') as file, process.stderr:
            self.assertTrue(file.read() == data.upper())
            self.assertEqual((process.stderr.read(), process.wait(PATIENCE)), (b'', 0))

    def test_reply_in_pieces(self):
        """A reply is all that comes until the line goes quiet; half a character is not the end of it."""
        def converse(conn):
            conn.recv(100)
            for piece in '世界'.encode()[:1], '世界'.encode()[1:5], '世界'.encode()[5:]:
                conn.sendall(piece)
                time.sleep(0.02)
            self.assertEqual(conn.recv(100), b'next')
            conn.sendall(b'NEXT')
            conn.recv(1)
        ended = self.client(self.listen(converse), '-m', 'hello', '-m', 'next')
        self.assertEqual(ended.stdout.replace(b'\r', b''), '世界\nNEXT\n'.encode())

    def test_no_server(self):
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = str(free.getsockname()[1])
        for arguments in ['-m', 'x'], ['chat'], ['load']:
            ended = run('client.py', *arguments, '--port', port)
            self.assertEqual(ended.returncode, 1)
            self.assertRegex(ended.stderr.decode(), rf"^cannot connect to host '127\.0\.0\.1', port {port}: .+\n$")

    @unittest.skipUnless(POSIX, 'needs a pseudo-terminal')
    def test_late_words(self):
        """What a server says when nobody has asked is shown at the prompt, and its leaving then too."""
        import pty
        go_on = threading.Event()

        def converse(conn):
            go_on.wait(PATIENCE)
            conn.sendall(b'late')
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        process = subprocess.Popen([sys.executable, 'client.py', '--port', str(self.listen(converse).address[1])], cwd=FOLDER,
                                   stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        shown = b''
        while b'closed the connection' not in shown:
            if shown.endswith(b'>>: '):
                go_on.set()
            self.assertTrue(select.select([master], [], [], PATIENCE)[0], shown)
            shown += os.read(master, 1000)
        self.assertIn(b'late\r\n', shown)
        self.assertEqual(process.wait(PATIENCE), 1)

    @unittest.skipUnless(POSIX, 'needs a pseudo-terminal')
    def test_chat_at_a_terminal(self):
        import pty

        def screen(until):
            shown = b''
            while until not in shown:
                self.assertTrue(select.select([master], [], [], PATIENCE)[0], shown)
                shown += os.read(master, 1000)
            return shown
        server = self.boot('selectors_server.py', '--suffix', '\x1b[2J')
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        for leave in b'exit\n', b'\x04', b'\x03', None:
            process = subprocess.Popen([sys.executable, 'client.py', '--port', str(server.address[1])], cwd=FOLDER, stdin=slave,
                                       stdout=slave, stderr=slave, preexec_fn=lambda: (os.setsid(), os.ttyname(0), controlling(0)))
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            screen(b'>>: ')
            os.write(master, b'\n')
            screen(b'>>: ')
            os.write(master, 'hello 世\n'.encode())
            self.assertIn('HELLO 世\\x1b[2J\r\n>>: '.encode(), screen('HELLO 世\\x1b[2J\r\n>>: '.encode()))
            if leave:
                os.write(master, leave)
                self.assertEqual(process.wait(PATIENCE), 130 if leave == b'\x03' else 0)
            else:           # the server leaves while we wait at the prompt
                server.stop()
                screen(b'the server has closed the connection')
                self.assertEqual(process.wait(PATIENCE), 1)
        os.close(slave)


def controlling(fd):
    """Make a terminal the controlling one of this process, so that Ctrl-C typed on it becomes a signal."""
    import fcntl
    import termios
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


class LoadTest(ModelTest):

    def load(self, server, *arguments):
        ended = run('client.py', 'load', '--port', str(server.address[1]), '--seconds', '0.3', '--json', *arguments)
        return ended, client.json.loads(ended.stdout) if ended.stdout else ended.stderr

    def test_load(self):
        for script, suffix in ('select_server.py', ''), ('selectors_server.py', '_SB'):
            ended, report = self.load(self.boot(script), '--connections', '20', '--idle', '30', '--size', '100')
            self.assertEqual((ended.returncode, report['errors'], report['suffix']), (0, {}, suffix))
            self.assertGreater(report['requests'], 100)
            self.assertTrue(report['p50_ms'] <= report['p95_ms'] <= report['p99_ms'] <= report['max_ms'])
            if LINUX:
                self.assertTrue(0.5 < report['server_cpu_us_per_request'] < 5000)

    def test_big_messages_and_reconnect(self):
        server = self.boot('selectors_server.py')
        for arguments in ['--size', '300000', '--connections', '5'], ['--reconnect', '--connections', '5']:
            ended, report = self.load(server, *arguments)
            self.assertEqual((ended.returncode, report['errors']), (0, {}), arguments)
            self.assertGreater(report['requests'], 5)

    def test_one_wrong_byte_is_an_error(self):
        """A server that flips one byte now and then makes it report errors and exit with 1."""
        path = altered(self, 'select_server.py', 'answer = bytes.upper ', '''
import random
def answer(data):
    return data.upper() if random.random() > 0.1 else bytes([data[0] ^ 1]) + data.upper()[1:]
default = bytes.upper ''')
        ended, report = self.load(self.boot(path))
        self.assertEqual(ended.returncode, 1)
        self.assertGreater(report['errors']['wrong answer'], 0)

    def test_text_report(self):
        ended = run('client.py', 'load', '--port', str(self.boot('select_server.py').address[1]), '--seconds', '0.2')
        self.assertRegex(ended.stdout.decode(), r'requests +\d+: \d+ a second\s+latency +p50 [\d.]+ ms, p95 .*\s+CPU +')

    def test_server_dies(self):
        """Between two messages, or (8 MB) in the middle of one."""
        for size in '64', '8000000':
            server = self.boot('select_server.py')
            threading.Timer(0.8 if POSIX else 4, server.process.kill).start()
            ended = run('client.py', 'load', '--port', str(server.address[1]), '--seconds', '10', '--json', '--size', size,
                        '--connections', '10')
            self.assertEqual((ended.returncode, ended.stderr), (1, b''))
            self.assertTrue(client.json.loads(ended.stdout)['errors'])


class CompareTest(unittest.TestCase):

    def test_figures_and_verdicts(self):
        """Two servers measured in a moment; a script that is missing is said to be, and its claims are not judged."""
        figures = client.Figures()
        for name, script, arguments in (('blocking serial', 'blocking_server.py', ['--mode', 'serial']),
                                        ('select', 'select_server.py', []), ('blocking thread', 'no_such_server.py', [])):
            client.attempt(figures, figures.rows, name, lambda: client.measure(script, arguments, 0.1, 50))
        self.assertGreater(figures.rows['blocking serial']['second_waits_s'], 0.9 * client.HOLD)
        self.assertIn('no_such_server.py', figures.failed['blocking thread'])
        verdicts = {each['claim']: each['verdict'] for each in client.judge(figures)}
        self.assertEqual(verdicts['A second client of a blocking server waits until the first has left'], 'holds here')
        self.assertEqual(verdicts['With a thread or a process each, clients do not block each other'], 'could not be measured')
        self.assertIn('select', client.report_table(figures))

    def test_a_verdict_follows_the_figures(self):
        figures = client.Figures()
        for waited, verdict in (client.HOLD, 'holds here'), (0.001, 'does not hold here'):
            figures.rows['blocking serial'] = {'second_waits_s': waited}
            self.assertEqual(client.judge(figures)[0]['verdict'], verdict)

    @unittest.skipUnless(LINUX, 'reads /proc')
    def test_ctrl_c_leaves_no_server(self):
        for number in signal.SIGINT, signal.SIGTERM:
            process = subprocess.Popen([sys.executable, 'client.py', 'compare'], cwd=FOLDER, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.assertTrue(wait_until(lambda: len(client.family(process.pid)) > 1))
            server = client.family(process.pid)[1]
            process.send_signal(number)
            process.communicate(timeout=PATIENCE)
            self.assertEqual(process.returncode, 1)
            self.assertFalse(os.path.exists(f'/proc/{server}'))


# ---- can the contract fail? ----

class BadServerTest(unittest.TestCase):
    """Servers that are wrong on purpose: the contract must catch each by the test that is meant for it."""

    SINS = {        # what is done to select_server.py: (old, new), and the test that catches it
        'test_answers_in_upper_case': ('bytes.upper ', '(lambda data: data.swapcase()) '),
        'test_answers_at_once': ('if data:', r'if not data.endswith(b"\n") and data: pass' + '\n    elif data:'),
        'test_every_byte_in_order': ('send(conn, answer(data))', 'send(conn, answer(data[:30000]))'),
        'test_half_close_while_much_is_owed': ('owed[conn] = data[sent:]', 'owed[conn] = data[sent + 1:]'),
        'test_resets': ("        data = b''  ", '        raise  '),
        'test_stalled_reader': ('conn.send(data)', '(conn.setblocking(True), conn.sendall(data), len(data))[2]'),
        'test_out_of_descriptors': ('    rlist.remove(server)\n    resting = time.monotonic() + MOMENT\n', ''),
        'test_no_leaks': ('    conn.close()\n\n\ndef rest', '    wlist_of_the_lost.append(conn)\n\n\nwlist_of_the_lost = []\n\n\ndef rest'),
        'test_500_at_once': ('server.listen(max(socket.SOMAXCONN, 4096))', 'server.listen(5)'),
        'test_ctrl_c': ("        say('stopped')\n", "        raise\n"),
        'test_sigterm': ("'SIGINT', 'SIGTERM', ", "'SIGINT', "),
        'test_starts_again_on_the_same_port': ('SO_REUSEADDR, 1', 'SO_REUSEADDR, 0'),
        'test_first_line': ("say(f'listening on", "say(f'Listening, listening on"),
        'test_ipv6': ("'[{}]:{}' if", "'{}:{}' if"),
        'test_idle': ('MOMENT if resting else None', '0'),
        'test_slow_answer': ('def read(conn):', 'def read(conn):\n    threading.Thread(target=read_now, args=(conn,)).start()\n'
                             '    time.sleep(0.01)\n\n\ndef read_now(conn):'),
    }

    def test_each_sin_is_caught(self):
        missed = []

        def commit(name, path):
            if not self.caught(name, path):
                missed.append(name)
        sinners = [threading.Thread(target=commit, args=(name, altered(self, 'select_server.py', old, new)))
                   for name, (old, new) in self.SINS.items()
                   if LINUX or name not in ('test_out_of_descriptors', 'test_sigterm', 'test_starts_again_on_the_same_port', 'test_idle')]
        for start in range(0, len(sinners), 4):     # mostly they wait: four at once
            for sinner in sinners[start:start + 4]:
                sinner.start()
            for sinner in sinners[start:start + 4]:
                sinner.join()
        self.assertEqual(missed, [])

    def caught(self, name, path):
        """Whether the test NAME of the contract fails against the server at PATH."""
        bad = type('Bad', (Contract, unittest.TestCase), {'script': path, 'loop': True, 'patience': 1.5, 'quiet': 0.5})
        result = unittest.TestResult()
        unittest.defaultTestLoader.suiteClass([bad(name)]).run(result)
        return result.failures or result.errors or result.skipped


# ---- the README ----

class ReadmeTest(unittest.TestCase):

    def setUp(self):
        with open(os.path.join(FOLDER, 'README.md'), encoding='utf-8') as file:
            self.readme = file.read()

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def arguments(script, *command):
        shown = run(script, *command, '--help').stdout.decode()
        return set(re.findall(r'(?<![\w-])(--?[a-z][a-z-]*)', shown[shown.rindex('\noptions:' if '\noptions:' in shown
                                                                                else '\noptional arguments:'):]))

    def test_every_argument_is_named(self):
        for words in [[script] for script in SCRIPTS] + [['client.py', each] for each in ('chat', 'load', 'compare')]:
            for argument in self.arguments(*words) - {'-h', '--help'}:
                self.assertIn(argument, self.readme, f'README does not tell of {argument} of {words}')

    def test_every_command_exists(self):
        """Each `python ...` of the page names a script that is there, with arguments that it takes."""
        commands = re.findall(r'python (\w+\.py)([^\n`|<>#]*)', self.readme)
        self.assertGreater(len(commands), 20)
        for script, rest_ in commands:
            self.assertTrue(os.path.exists(os.path.join(FOLDER, script)), script)
            words = rest_.split()
            command = words[:1] if script == 'client.py' and words[:1] and words[0] in ('chat', 'load', 'compare') else []
            if script == 'client.py' and not command:
                command = ['chat']
            known = self.arguments(script, *command) if script != 'test_all.py' else set()
            for word in words:
                if word.startswith('-'):
                    self.assertIn(word.split('=')[0], known, f'{script} {rest_}')

    def test_every_script_mode_and_selector_is_named(self):
        for script in SCRIPTS + ['client.py', 'test_all.py']:
            self.assertIn(script, self.readme)
            choices = re.findall(r'\{([a-z_,]+)\}', run(script, '--help').stdout.decode()) if script in SCRIPTS else []
            for choice in {word for each in choices for word in each.split(',')}:
                self.assertIn(choice, self.readme, f'README does not tell of {choice} of {script}')


if __name__ == '__main__':
    unittest.main()

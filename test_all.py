"""Proves every server on this machine: python -m unittest (or -v, or -k stalled, or test_all.SelectTest).

One table of tests, `Contract`, runs against every server and mode of the folder; then comes what is particular to each
model, the trace, the client, and the README. `BadServerTest` runs the same table against servers that are wrong on
purpose, and sees each of them caught.

Nothing here waits by the clock for what has an event: tests wait for lines, for bytes, for connections to end. Times
are asserted with a wide margin, since machines are shared; speed is the business of client.py load and compare.
"""
import ast
import errno
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


def stall(sock):
    """Send to a server until nothing more goes, and read nothing; return what was sent."""
    sock.setblocking(False)
    sent = bytearray()
    chunk = bytes(random.Random(2).choices(range(256), k=65536))
    while select.select([], [sock], [], 0.2)[1] and len(sent) < 200 << 20:
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

    def assert_idle(self, server, seconds=0.2):
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
        """5 MB in pieces of all sizes, then half-close: all of it comes back, and then the end."""
        data = bytes(random.Random(3).choices(range(256), k=5 << 20))
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
        sent = stall(sock)
        more = threading.Thread(target=lambda: (sock.sendall(b'the end'), sock.shutdown(socket.SHUT_WR)))
        more.start()
        came = receive_all(sock)
        more.join()
        self.assertEqual(len(came), len(sent) + 7)
        self.assertEqual(came, sent.upper() + b'THE END')

    # abuse

    def test_resets(self):
        """A client that resets, with an answer under way or without, costs only its own connection."""
        for message in b'', b'x', b'x' * 300000:
            with self.connect() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                if message:
                    sock.setblocking(False)
                    sock.send(message)
        self.assert_serves()

    def test_reset_while_stalled(self):
        with self.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            stall(sock)
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
        sent = stall(sock)
        if LINUX:
            self.assertLess(client.memory(server.pid) - before, 4 << 20, 'it stores what is not read')
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
        """After hundreds have come and gone nothing is left of them: no descriptor, thread, or zombie."""
        def held():
            return descriptors(self.server), client.threads(self.server.pid), len(client.family(self.server.pid))
        self.assert_serves()
        wait_until(lambda: self.server.pid and held()[2] == 1, 3)
        before = held()
        for number in range(300):
            with self.connect() as sock:
                if number % 3:
                    sock.sendall(b'x')
                if number % 3 == 2:
                    self.assertEqual(sock.recv(1), b'X')
        self.assert_serves()
        self.assertTrue(wait_until(lambda: held() <= before), f'{before} before, {held()} after')

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
        server.process.send_signal(number)
        self.assertEqual(server.process.wait(PATIENCE), 0)
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

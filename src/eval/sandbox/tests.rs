//! Programs that do what they should not.

use super::*;

/// Runs programs one after the other and looks at what is left of them.
struct Bench(Sandbox);

impl Bench {
    /// `None`, with a note, where there is no Python or the sandbox cannot be had.
    fn new() -> Option<Self> {
        Sandbox::new(None, Limits::default()).map(Self).map_err(|e| println!("skipped: {e}")).ok()
    }

    /// With a shorter time: a second, unless there is more to do. Trials had the usual limits.
    fn short() -> Option<Self> {
        let mut bench = Self::new()?;
        bench.0.limits.seconds = 1.0;
        Some(bench)
    }

    fn run(&self, program: &str) -> Outcome {
        let outcome = self.0.run(program).unwrap();
        assert!(outcome.message.chars().count() <= 200 && !outcome.message.contains(char::is_control));
        assert_eq!(left(&self.0), 0, "nothing is left of {program}");
        outcome
    }

    #[track_caller]
    fn ends(&self, program: &str, expected: Verdict, message: &str) {
        let outcome = self.run(program);
        assert_eq!(outcome.verdict, expected, "{program}: {outcome:?}");
        assert!(outcome.message.contains(message), "{program}: {outcome:?}");
    }

    #[track_caller]
    fn passes(&self, program: &str) {
        self.ends(program, Verdict::Passed, "");
    }

    #[track_caller]
    fn fails(&self, program: &str, message: &str) {
        self.ends(program, Verdict::Failed, message);
    }

    #[track_caller]
    fn is_forbidden(&self, program: &str) {
        self.ends(program, Verdict::Forbidden, "a system call");
    }

    #[track_caller]
    fn is_late(&self, program: &str) -> Outcome {
        let outcome = self.run(program);
        assert_eq!(outcome.verdict, Verdict::TimedOut, "{program}: {outcome:?}");
        assert!(outcome.seconds >= self.0.limits.seconds, "{program}: {outcome:?}");
        outcome
    }
}

/// Processes that are still in the folder of the sandbox.
fn left(sandbox: &Sandbox) -> usize {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let here = sandbox.machine.folder().unwrap();
    let folders = processes.flatten().filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok());
    folders.filter(|folder| folder == here).count()
}

#[test]
fn right_and_wrong_programs() {
    let Some(bench) = Bench::new() else { return };
    let program = |answer: &str| {
        format!("def two():\n    return {answer}\n\ndef check(f):\n    assert f() == 2\n\ncheck(two)")
    };
    bench.passes(&program("1 + 1"));
    bench.fails(&program("3"), "AssertionError");
    bench.fails(&program("("), "SyntaxError");
    bench.passes("");
    bench.fails("raise ValueError('a\\x1b[31m')", "ValueError: a\u{fffd}[31m");
    bench.passes("x = '\u{e9}\u{1f600}'\nassert len(x) == 2 and ord(x[0]) == 0xe9");
    bench.fails("a = '\0'", "null");
    // Larger than a pipe.
    bench.passes(&format!("x = '{}'\nassert len(x) == 300000", "a".repeat(300_000)));
    bench.passes("assert __name__ == 'builtins'\ndef f(): return g()\ndef g(): return 1\nf()");
    bench.passes("import math, re, collections, random, decimal, json, hashlib, datetime");
    bench.fails("def f(): f()\nf()", "RecursionError");
}

#[test]
fn an_early_end_is_no_pass() {
    let Some(bench) = Bench::new() else { return };
    for program in
        ["import sys\nsys.exit(0)", "raise SystemExit", "import sys\nsys.stdout.close()\nsys.exit()"]
    {
        bench.fails(program, "SystemExit");
    }
    for program in ["import os\nos._exit(0)", "import os\nos.execv('/bin/true', ['true'])"] {
        bench.fails(program, "exit with code 0 before its end");
    }
    bench.fails("import os\nos.closerange(0, 64)\nassert False", "before its end");
    bench.fails("input()", "EOFError");
    // Nor is writing what nobody waits for, wherever it goes.
    bench.fails(
        "import os\nfor n in range(64):\n  try: os.write(n, b'passed' * 9 + b'\\n')\n  except OSError: pass",
        "passed",
    );
}

#[test]
fn a_pass_is_one_whatever_was_replaced() {
    let Some(bench) = Bench::new() else { return };
    bench.passes("import os, sys\nos.write = os._exit = sys.exit = print = None\nsys.stdout.close()");
    // Python would wait for the thread.
    let thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n";
    bench.passes(thread);
    bench.fails(&format!("{thread}assert False"), "AssertionError");
}

#[test]
fn endless_programs_are_stopped() {
    let Some(bench) = Bench::short() else { return };
    bench.is_late("while True: pass");
    bench.is_late("import os\nos.closerange(0, 64)\nwhile True: pass");
}

#[test]
fn endless_programs_are_stopped_though_they_do_not_listen() {
    let Some(bench) = Bench::short() else { return };
    bench.is_late(
        "import signal\nfor n in range(1, 31):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: pass\n\
         while True: pass",
    );
    bench.is_late(
        "import threading\nfor _ in range(4): threading.Thread(target=lambda: list(iter(lambda: 1, 0))).start()\n\
         import time\ntime.sleep(60)",
    );
}

#[test]
fn endless_output_is_drained() {
    let Some(bench) = Bench::short() else { return };
    bench.is_late("while True: print('x' * 1000)");
    let outcome = bench.is_late("import sys\nwhile True: sys.stderr.write('x' * 100000 + '\\ny\\n')");
    assert!(outcome.message.bytes().all(|b| b == b'x' || b == b'y'), "{outcome:?}");
}

#[test]
fn the_last_output_is_kept() {
    let Some(bench) = Bench::new() else { return };
    bench.fails("import sys\nsys.stderr.write('x\\n' * 1000000)\nraise KeyError('end')", "KeyError: 'end'");
}

#[test]
fn processes_are_forbidden() {
    let Some(bench) = Bench::new() else { return };
    for program in [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.spawnv(os.P_NOWAIT, '/bin/true', ['true'])",
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
    ] {
        bench.is_forbidden(program);
    }
}

#[test]
fn connections_are_forbidden() {
    let Some(bench) = Bench::new() else { return };
    for program in [
        "import socket\nsocket.socket()",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import socket\nsocket.socketpair()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    ] {
        bench.is_forbidden(program);
    }
}

#[test]
fn other_processes_are_out_of_reach() {
    let Some(bench) = Bench::new() else { return };
    for program in [
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.kill(-1, 9)",
        "import os\nos.kill(0, 9)",
        "import os\nos.killpg(os.getpgid(os.getppid()), 9)",
        // Of a terminal, this sends signals to what runs in it.
        "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)",
        "import fcntl, os\nfcntl.fcntl(os.open('/', 0), fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)",
    ] {
        bench.is_forbidden(program);
    }
    bench.passes(
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETFL, os.O_NONBLOCK)\n\
         assert fcntl.fcntl(r, fcntl.F_GETFL) & os.O_NONBLOCK",
    );
    for program in [
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os\nos.sched_setaffinity(os.getppid(), [0])",
    ] {
        bench.fails(program, "Function not implemented");
    }
    // Its own end is its own affair.
    bench.ends("import os\nos.kill(os.getpid(), 15)", Verdict::Killed, "signal 15");
    bench.ends("import os\nos.abort()", Verdict::Killed, "signal 6");
    bench.ends("import ctypes\nctypes.string_at(0)", Verdict::Killed, "signal 11");
}

#[test]
fn limits_cannot_be_raised() {
    let Some(bench) = Bench::new() else { return };
    bench.fails(
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "Function not implemented",
    );
    bench.passes("import os\ntry:\n  while True: n = os.dup(0)\nexcept OSError: assert n < 64");
    // No capability, no way to get one, no other group or session.
    bench.passes(
        "import os\nlines = dict(line.split(':') for line in open('/proc/self/status') if ':' in line)\n\
         assert int(lines['CapEff'], 16) == int(lines['CapPrm'], 16) == 0 and int(lines['NoNewPrivs']) == 1\n\
         assert os.getpid() == os.getpgid(0) == os.getsid(0)",
    );
}

#[test]
fn a_program_starts_with_nothing() {
    let Some(bench) = Bench::new() else { return };
    let file = std::fs::File::open("/dev/null").unwrap();
    // The standard streams, the pipe of the harness, and the list itself.
    bench.passes("import os\nassert not os.listdir()\nassert len(os.listdir('/proc/self/fd')) == 5");
    drop(file);
    bench.passes("import os\nassert 'PATH' not in os.environ and 'USER' not in os.environ");
    // Texts have the same hashes, and sets the same order, every time.
    let hash = |bench: &Bench| bench.run("raise ValueError(hash('a'))").message;
    assert_eq!(hash(&bench), hash(&bench));
}

#[test]
fn memory_is_bounded() {
    let Some(mut bench) = Bench::new() else { return };
    bench.ends("x = bytearray(8 << 30)", Verdict::OutOfMemory, "MemoryError");
    bench.is_forbidden("import os\nos.memfd_create('x')");
    bench.0.limits.memory = 128 << 20;
    for program in [
        "x = []\nwhile True: x.append(x[:])",
        "x = []\nwhile True: x.append([None] * 10)",
        "x = 'x'\nwhile True: x += x",
        "x = {}\nwhile True: x[len(x)] = [1.5]",
    ] {
        bench.ends(program, Verdict::OutOfMemory, "MemoryError");
    }
    bench
        .fails("import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 20))", "Cannot allocate memory");
}

#[test]
fn threads_work_and_are_bounded() {
    let Some(bench) = Bench::new() else { return };
    bench.passes(
        "from concurrent.futures import ThreadPoolExecutor\nimport queue, threading\nq = queue.Queue()\n\
         t = threading.Thread(target=q.put, args=(7,))\nt.start()\nassert q.get(timeout=9) == 7\nt.join()\n\
         with ThreadPoolExecutor(4) as pool: assert list(pool.map(abs, [-1, 2])) == [1, 2]",
    );
    let many = "import threading, time\nthreading.stack_size(32768)\n\
                while True: threading.Thread(target=time.sleep, args=(60,)).start()";
    bench.ends(many, Verdict::Forbidden, "threads");
}

#[test]
fn nothing_is_written() {
    let Some(bench) = Bench::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, "as it was").unwrap();
    let (file, folder) = (path.display(), folder.path().display());
    for program in [
        "f = open('big', 'wb')\nfor _ in range(100): f.write(bytes(1 << 20))".to_owned(),
        format!("open('{file}', 'w')"),
        format!("open('{file}', 'a')"),
        format!("open('{file}', 'r+')"),
        format!("import os\nos.open('{file}', os.O_RDONLY | os.O_TRUNC)"),
        format!("import os\nos.open('{folder}/new', os.O_RDONLY | os.O_CREAT)"),
        format!("import os\nos.remove('{file}')"),
        format!("import os\nos.truncate('{file}', 0)"),
        format!("import os\nos.rename('{file}', '{folder}/y')"),
        format!("import os\nos.chmod('{file}', 0)"),
        format!("import os\nos.mkdir('{folder}/y')"),
        format!("import shutil\nshutil.rmtree('{folder}')"),
    ] {
        bench.is_forbidden(&program);
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "as it was");
    assert_eq!(std::fs::read_dir(bench.0.machine.folder().unwrap()).unwrap().count(), 0);
    bench.passes(&format!("assert open('{file}').read() == 'as it was'"));
}

#[test]
fn several_threads_share_a_sandbox() {
    let Some(Bench(sandbox)) = Bench::new() else { return };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for n in 0..5 {
                    let (program, expected) = match n % 2 {
                        0 => (format!("assert {thread} + {n} == {}", thread + n), Verdict::Passed),
                        _ => ("import os\nos.fork()".to_owned(), Verdict::Forbidden),
                    };
                    assert_eq!(sandbox.run(&program).unwrap().verdict, expected);
                }
            });
        }
    });
    assert_eq!(left(&sandbox), 0);
}

#[test]
fn limits_and_interpreters_are_checked() {
    let refused = |limits, python: Option<&str>| {
        let refused = Sandbox::new(python.map(Path::new), limits).unwrap_err();
        assert!(matches!(refused, Error::Request(_)), "{refused}");
        refused.to_string()
    };
    let limits = Limits::default();
    for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
        assert!(refused(Limits { seconds, ..limits }, None).contains("the time limit"));
    }
    assert!(refused(Limits { memory: 0, ..limits }, None).contains("the memory limit"));
    assert!(refused(Limits { file: 0, ..limits }, None).contains("the file limit"));
    assert!(refused(Limits { output: 0, ..limits }, None).contains("the output limit"));
    if Bench::new().is_none() {
        return;
    }
    assert!(refused(limits, Some("/nowhere/python3")).contains("cannot be started"));
    assert!(refused(limits, Some("/bin/false")).contains("does not say its version"));
    assert!(refused(Limits { memory: 1 << 20, ..limits }, None).contains("may be too low"));
}

#[test]
fn verdicts_have_names_of_their_own() {
    let names: std::collections::HashSet<&str> = Verdict::ALL.into_iter().map(Verdict::name).collect();
    assert_eq!(names.len(), Verdict::ALL.len());
}

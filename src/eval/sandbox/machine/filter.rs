//! Which system calls a program may make.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::error::{Error, Result};

/// Stands for the process id, which is not known when the filters are made: no id, size or address.
const SELF: u32 = 0x7FED_CAFE;
/// Conditions on the process id: of `kill` and of `tgkill`.
const SELVES: usize = 2;

/// The two filters, to be installed in this order: the second does not let through what installs them.
#[derive(Clone, Debug)]
pub struct Filters {
    /// Ends the process for what is forbidden.
    pub forbidden: BpfProgram,
    /// Answers `ENOSYS` to what is not needed.
    pub needed: BpfProgram,
}

impl Filters {
    pub fn new() -> Result<Self> {
        let fail = |e: seccompiler::BackendError| {
            Error::request(format_args!("a seccomp filter cannot be made: {e}"))
        };
        let compile = |rules, otherwise, then| -> Result<BpfProgram, seccompiler::BackendError> {
            let arch = TargetArch::try_from(std::env::consts::ARCH)?;
            SeccompFilter::new(rules, otherwise, then, arch)?.try_into()
        };
        let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
        let forbidden = forbidden()
            .and_then(|rules| compile(rules, SeccompAction::Allow, SeccompAction::KillProcess))
            .map_err(fail)?;
        let needed =
            needed().and_then(|rules| compile(rules, unknown, SeccompAction::Allow)).map_err(fail)?;
        let selves = forbidden.iter().filter(|instruction| instruction.k == SELF).count();
        if selves != SELVES {
            return Err(Error::request(format_args!(
                "a seccomp filter cannot be made: {selves} conditions on the process id, expected {SELVES}"
            )));
        }
        Ok(Self { forbidden, needed })
    }

    /// Puts in the process id. Allocates nothing.
    pub fn set_process(&mut self, id: u32) {
        for instruction in &mut self.forbidden {
            if instruction.k == SELF {
                instruction.k = id;
            }
        }
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Adds calls that match whatever their arguments are.
fn always(rules: &mut Rules, calls: &[i64]) {
    rules.extend(calls.iter().map(|&call| (call, Vec::new())));
}

/// Adds a call that matches when one of the conditions holds: on an argument by its number.
fn when(
    rules: &mut Rules,
    call: i64,
    argument: u8,
    any: impl IntoIterator<Item = (SeccompCmpOp, u64)>,
) -> Result<(), seccompiler::BackendError> {
    let rule = |(operator, value)| {
        // Flags, commands and ids have 32 bits, of which the kernel looks at no more.
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let any = any.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    rules.insert(call, any);
    Ok(())
}

/// Calls that no program under test has a use for.
fn forbidden() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let mut rules = Rules::new();
    // Processes, and what reaches into others. `clone3` is unknown instead, since its flags cannot be looked at: C
    // libraries then start threads by `clone`.
    always(
        &mut rules,
        &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_send_signal,
            libc::SYS_kcmp,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_tkill,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
        ],
    );
    when(&mut rules, libc::SYS_clone, 0, [(MaskedEq(libc::CLONE_THREAD as u64), 0)])?;
    // Signals to others; those to itself are how C libraries abort.
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        when(&mut rules, call, 0, [(Ne, u64::from(SELF))])?;
    }
    // Those of files: a terminal's go to whatever runs in it.
    let flag = libc::O_ASYNC as u64;
    let signals = vec![
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, Eq, libc::F_SETFL as u64)?,
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, MaskedEq(flag), flag)?,
    ];
    rules.insert(libc::SYS_fcntl, vec![SeccompRule::new(signals)?]);
    // Connections.
    always(&mut rules, &[libc::SYS_socket, libc::SYS_socketpair, libc::SYS_io_uring_setup]);
    // Files: what makes, changes or removes one, or memory that outlives or passes by the limit on memory.
    always(
        &mut rules,
        &[
            libc::SYS_mkdirat,
            libc::SYS_mknodat,
            libc::SYS_unlinkat,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_truncate,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_fchown,
            libc::SYS_fchownat,
            libc::SYS_utimensat,
            libc::SYS_setxattr,
            libc::SYS_lsetxattr,
            libc::SYS_fsetxattr,
            libc::SYS_removexattr,
            libc::SYS_lremovexattr,
            libc::SYS_fremovexattr,
            libc::SYS_open_by_handle_at,
            libc::SYS_memfd_create,
            libc::SYS_shmget,
            libc::SYS_semget,
            libc::SYS_msgget,
            libc::SYS_mq_open,
        ],
    );
    let writes = [
        (MaskedEq(libc::O_ACCMODE as u64), libc::O_WRONLY as u64),
        (MaskedEq(libc::O_ACCMODE as u64), libc::O_RDWR as u64),
        (MaskedEq(libc::O_ACCMODE as u64), libc::O_ACCMODE as u64),
        (MaskedEq(libc::O_CREAT as u64), libc::O_CREAT as u64),
        (MaskedEq(libc::O_TRUNC as u64), libc::O_TRUNC as u64),
    ];
    when(&mut rules, libc::SYS_openat, 2, writes.clone())?;
    // The system itself.
    always(
        &mut rules,
        &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_adjtimex,
            libc::SYS_clock_adjtime,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_keyctl,
        ],
    );
    #[cfg(target_arch = "x86_64")]
    {
        always(
            &mut rules,
            &[
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_creat,
                libc::SYS_mkdir,
                libc::SYS_mknod,
                libc::SYS_unlink,
                libc::SYS_rmdir,
                libc::SYS_rename,
                libc::SYS_link,
                libc::SYS_symlink,
                libc::SYS_chmod,
                libc::SYS_chown,
                libc::SYS_lchown,
                libc::SYS_utime,
                libc::SYS_utimes,
                libc::SYS_futimesat,
                libc::SYS_iopl,
                libc::SYS_ioperm,
            ],
        );
        when(&mut rules, libc::SYS_open, 1, writes)?;
    }
    Ok(rules)
}

/// Calls that Python, its C library and the loader need, and that touch nothing but the process itself and files
/// that it reads.
fn needed() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::Eq;
    let mut rules = Rules::new();
    // Files.
    always(
        &mut rules,
        &[
            libc::SYS_openat,
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_pread64,
            libc::SYS_preadv,
            libc::SYS_write,
            libc::SYS_writev,
            libc::SYS_lseek,
            libc::SYS_close,
            libc::SYS_close_range,
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_statfs,
            libc::SYS_fstatfs,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_readlinkat,
            libc::SYS_getcwd,
            libc::SYS_chdir,
            libc::SYS_fchdir,
            libc::SYS_getdents64,
            libc::SYS_dup,
            libc::SYS_dup3,
            libc::SYS_pipe2,
            libc::SYS_ppoll,
            libc::SYS_pselect6,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_timerfd_gettime,
            libc::SYS_fadvise64,
            libc::SYS_umask,
        ],
    );
    // Without those that have signals sent to a process of one's choice, make a pipe larger, or take locks;
    // `F_SETFL` without `O_ASYNC`.
    let commands =
        [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
    when(&mut rules, libc::SYS_fcntl, 1, commands.map(|command| (Eq, command as u64)))?;
    // Without those by which a terminal can be typed on. The type differs between C libraries.
    #[allow(clippy::unnecessary_cast)]
    let requests = [
        libc::TCGETS as u64,
        libc::TIOCGWINSZ as u64,
        libc::FIOCLEX as u64,
        libc::FIONCLEX as u64,
        libc::FIONBIO as u64,
        libc::FIONREAD as u64,
    ];
    when(&mut rules, libc::SYS_ioctl, 1, requests.map(|request| (Eq, request)))?;
    // Memory.
    always(
        &mut rules,
        &[
            libc::SYS_brk,
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_mprotect,
            libc::SYS_madvise,
            libc::SYS_mincore,
            libc::SYS_membarrier,
        ],
    );
    // The process and its threads: `clone` of threads alone, `kill` of itself.
    always(
        &mut rules,
        &[
            libc::SYS_execve,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_clone,
            libc::SYS_futex,
            libc::SYS_set_robust_list,
            libc::SYS_get_robust_list,
            libc::SYS_set_tid_address,
            libc::SYS_rseq,
            libc::SYS_sched_yield,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_getparam,
            libc::SYS_sched_getscheduler,
            libc::SYS_sched_get_priority_max,
            libc::SYS_sched_get_priority_min,
            libc::SYS_wait4,
            libc::SYS_waitid,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_rt_sigpending,
            libc::SYS_rt_sigsuspend,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_sigaltstack,
            libc::SYS_getpid,
            libc::SYS_getppid,
            libc::SYS_gettid,
            libc::SYS_getpgid,
            libc::SYS_getsid,
            libc::SYS_getuid,
            libc::SYS_geteuid,
            libc::SYS_getresuid,
            libc::SYS_getgid,
            libc::SYS_getegid,
            libc::SYS_getresgid,
            libc::SYS_getgroups,
            libc::SYS_getpriority,
            libc::SYS_getrusage,
            libc::SYS_getcpu,
            libc::SYS_getrandom,
            libc::SYS_uname,
            libc::SYS_sysinfo,
        ],
    );
    when(&mut rules, libc::SYS_prctl, 0, [libc::PR_SET_NAME, libc::PR_GET_NAME].map(|c| (Eq, c as u64)))?;
    // Limits can be asked for, not set: the new ones are at address 0.
    let none = SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![none])?]);
    // Time.
    always(
        &mut rules,
        &[
            libc::SYS_clock_gettime,
            libc::SYS_clock_getres,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_gettimeofday,
            libc::SYS_times,
            libc::SYS_getitimer,
            libc::SYS_setitimer,
            libc::SYS_timer_create,
            libc::SYS_timer_settime,
            libc::SYS_timer_gettime,
            libc::SYS_timer_getoverrun,
            libc::SYS_timer_delete,
        ],
    );
    // Older forms.
    #[cfg(target_arch = "x86_64")]
    always(
        &mut rules,
        &[
            libc::SYS_open,
            libc::SYS_stat,
            libc::SYS_lstat,
            libc::SYS_access,
            libc::SYS_readlink,
            libc::SYS_getdents,
            libc::SYS_dup2,
            libc::SYS_pipe,
            libc::SYS_poll,
            libc::SYS_select,
            libc::SYS_epoll_create,
            libc::SYS_epoll_wait,
            libc::SYS_eventfd,
            libc::SYS_arch_prctl,
            libc::SYS_getpgrp,
            libc::SYS_getrlimit,
            libc::SYS_time,
            libc::SYS_alarm,
            libc::SYS_pause,
        ],
    );
    Ok(rules)
}

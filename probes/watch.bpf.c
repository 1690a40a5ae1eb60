// The kernel half of the watch. Raw tracepoints only: they need no tracefs and no tracepoint ids.
//
// The programs read their arguments, helpers' answers, and structure members at offsets that the
// loader took from the running kernel's BTF (OFF_*); never a user pointer. Everything upper case
// that is not defined here comes from events.py, layout.py or load.py as a macro.
//
// This file may also be used under the GPL, version 2: the helpers below ask for that.
//
// The way of a call nobody watches must stay short: every process of the machine walks it.

#include <linux/ptrace.h>

#define NR_X32 0x40000000
#define SIG_STOP 19
#define SIG_SYS 31
#define CODE_SECCOMP 1      // si_code SYS_SECCOMP
#define COMPAT_STATUS 2     // TS_COMPAT in thread_info.status
#define HERE BPF_F_CURRENT_CPU

struct slot {
    u32 number;
    u32 zero;
    u64 before[3];          // user space's: what the counters said at registering
};

struct rules {
    u8 call[CALLS];
    u8 on_unseen;
    u8 on_high_risk;
    u8 denials;
    u8 zero[5];
};

struct state {
    u8 seen[CALLS];         // bit 0: call met or reported, bit 1: SIGSYS reported
    u8 denied[CALLS];       // one bit per watched errno
    u8 denied_foreign[8];   // the same for numbers that are not plain ones, by foreign flags
    u64 alerts;             // rate limiters: the time up to which the budget is spent
    u64 records;
};

struct counters {
    u64 cgroup;
    u64 seen;
    u64 suppressed;
    u64 lost;
};

struct manifest {
    u32 abi;
    u32 level;
    u32 denials;
    u32 zero;
};

struct event {
    u64 time;
    u64 cgroup;
    u32 pid;
    u32 tid;
    s32 number;
    s32 detail;
    u8 kind;
    u8 verdict;
    u16 flags;
    u32 zero;
    char comm[16];
};

struct path_event {
    struct event head;
    char path[PATH_SIZE];
};

_Static_assert(sizeof(struct slot) == SLOT_SIZE, "slot");
_Static_assert(sizeof(struct rules) == RULES_SIZE, "rules");
_Static_assert(sizeof(struct state) == STATE_SIZE, "state");
_Static_assert(sizeof(struct counters) == COUNTERS_SIZE, "counters");
_Static_assert(sizeof(struct manifest) == MANIFEST_SIZE, "manifest");
_Static_assert(sizeof(struct event) == RECORD_SIZE, "event");
_Static_assert(sizeof(struct path_event) == RECORD_SIZE + PATH_SIZE, "path_event");

// BPF_F_RDONLY_PROG: a bug here cannot change what was asked for. The loader freezes `counters`:
// only the programs write it, and the reader maps it without a system call per look.
BPF_F_TABLE("hash", u64, struct slot, slots, SLOTS, BPF_F_RDONLY_PROG);
BPF_F_TABLE("array", u32, struct rules, rules, SLOTS, BPF_F_RDONLY_PROG);
BPF_F_TABLE("array", u32, struct state, state, SLOTS, 0);
BPF_F_TABLE("array", u32, struct counters, counters, SLOTS, BPF_F_MMAPABLE);
BPF_F_TABLE("lru_hash", u32, u64, members, MEMBERS, 0);
BPF_F_TABLE("array", u32, struct manifest, manifest, 1, BPF_F_RDONLY_PROG);
BPF_RINGBUF_OUTPUT(ring, RING_PAGES);

// This helper answers with a pointer the verifier knows the type of, so members are plain loads.
static void *(*this_task)(void) = (void *)158;
// By number, because bcc would turn these names into the older helper, which also reads user memory.
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*read_text)(void *to, u32 size, const void *from) = (void *)115;

// The cgroup below the slice that the current task is in, however deep; 0 outside.
static __always_inline u64 workload(void)
{
    // Asking first whether the slice is ours was tried: no gain outside, 26 ns more inside.
    return bpf_get_current_ancestor_cgroup_id(LEVEL);
}

// Bits that say that `number` is not a plain x86-64 call number.
static __always_inline u16 foreign(long number)
{
    u16 flags = 0;
    void *task = this_task();
    if (*(volatile u32 *)(task + OFF_STATUS) & COMPAT_STATUS)
        flags |= FLAG_COMPAT;
    if (number < 0 || number >= CALLS)
        flags |= number > 0 && (number & NR_X32) ? FLAG_X32 : FLAG_RANGE;
    return flags;
}

// Spend one event of a budget; false when it is used up. Two CPUs at once may both win a race
// and get one event too many, never one too few.
static __always_inline int afford(u64 *spent, u64 now)
{
    u64 until = *spent;
    if (until < now) {
        *spent = now + INTERVAL_NS;
        return 1;
    }
    if (until - now > BURST_NS)
        return 0;
    __sync_fetch_and_add(spent, INTERVAL_NS);
    return 1;
}

static __always_inline void fill(struct event *event, u64 cgroup, u8 kind, u8 verdict, u16 flags,
                                 s32 number, s32 detail)
{
    u64 id = bpf_get_current_pid_tgid();
    event->time = bpf_ktime_get_ns();
    event->cgroup = cgroup;
    event->pid = id >> 32;
    event->tid = (u32)id;
    event->number = number;
    event->detail = detail;
    event->kind = kind;
    event->verdict = verdict;
    event->flags = flags;
    bpf_get_current_comm(event->comm, sizeof(event->comm));
}

// Count an event and hand it out; true when the ring took it. `always` passes the rate limit: it
// is set for things that a workload can make happen only a bounded number of times.
static __always_inline int report(void *event, u64 size, u32 slot, int always)
{
    struct event *head = event;
    struct counters *count = counters.lookup(&slot);
    struct state *mine = state.lookup(&slot);
    if (!count || !mine)
        return 0;
    count->cgroup = head->cgroup;
    __sync_fetch_and_add(&count->seen, 1);
    u64 *budget = head->verdict == VERDICT_RECORD ? &mine->records : &mine->alerts;
    if (!afford(budget, head->time) && !always) {
        __sync_fetch_and_add(&count->suppressed, 1);
        return 0;
    }
    if (ring.ringbuf_output(event, size, 0)) {
        __sync_fetch_and_add(&count->lost, 1);
        return 0;
    }
    return 1;
}

static __always_inline void repeated(u32 slot)
{
    struct counters *count = counters.lookup(&slot);
    if (count) {
        __sync_fetch_and_add(&count->seen, 1);
        __sync_fetch_and_add(&count->suppressed, 1);
    }
}

// sys_enter(struct pt_regs *regs, long id). A call that seccomp refuses never gets here.
int on_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u64 cgroup = workload();
    struct slot *found = slots.lookup(&cgroup);
    if (!found)
        return 0;
    u32 slot = found->number;
    struct rules *rule = rules.lookup(&slot);
    struct state *mine = state.lookup(&slot);
    if (!rule || !mine)
        return 0;

    long number = ctx->args[1];
    u16 flags = foreign(number);
    struct event event = {};
    if (flags) {
        fill(&event, cgroup, KIND_CALL, VERDICT_ALERT, flags, number, 0);
        report(&event, sizeof(event), slot, 0);
        return 0;
    }

    u32 index = (u32)number & (CALLS - 1);
    u8 class = rule->call[index];
    u8 seen = mine->seen[index];
    if (class == CALLS_ALLOWED) {
        if (!seen)
            mine->seen[index] = 1;
        return 0;
    }
    if (class == CALLS_RISK) {
        u8 verdict = rule->on_high_risk;
        flags = FLAG_HIGH_RISK;
        // The call itself still runs: a signal takes effect on the way back. The next one does not.
        if (verdict >= VERDICT_STOP && !bpf_send_signal(SIG_STOP))
            flags |= FLAG_SIGNALLED;
        fill(&event, cgroup, KIND_CALL, verdict, flags, number, 0);
        if (report(&event, sizeof(event), slot, !(seen & 1)))
            mine->seen[index] = seen | 1;
        return 0;
    }
    if (seen & 1) {
        repeated(slot);
        return 0;
    }
    fill(&event, cgroup, KIND_CALL, rule->on_unseen, 0, number, 0);
    // Marked only once it was delivered, so a first call is never lost to a busy moment.
    if (report(&event, sizeof(event), slot, 0))
        mine->seen[index] = seen | 1;
    return 0;
}

// sys_exit(struct pt_regs *regs, long ret). Attached only when some policy asks for denials.
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
    long ret = ctx->args[1];
    u8 bit;
    switch (ret) {
    DENIAL_CASES
    default:
        return 0;
    }
    u64 cgroup = workload();
    struct slot *found = slots.lookup(&cgroup);
    if (!found)
        return 0;
    u32 slot = found->number;
    struct rules *rule = rules.lookup(&slot);
    struct state *mine = state.lookup(&slot);
    if (!rule || !mine || !rule->denials)
        return 0;

    // The number is not an argument here; it is still where the entry code saved it.
    long number = -1;
    if (read_kernel(&number, sizeof(number), (void *)ctx->args[0] + OFF_ORIG_AX))
        return 0;
    u16 flags = foreign(number);
    u8 *told = flags ? &mine->denied_foreign[flags & 7] : &mine->denied[number & (CALLS - 1)];
    u8 before = *told;
    if (before & bit) {
        repeated(slot);
        return 0;
    }
    struct event event = {};
    fill(&event, cgroup, KIND_DENIED, VERDICT_ALERT, flags, number, -ret);
    if (report(&event, sizeof(event), slot, 0))
        *told = before | bit;
    return 0;
}

// signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, ...).
// This is how a call that seccomp killed or trapped shows. siginfo is laid out as in user space.
int on_signal(struct bpf_raw_tracepoint_args *ctx)
{
    if ((s32)ctx->args[0] != SIG_SYS)
        return 0;
    u64 cgroup = workload();
    struct slot *found = slots.lookup(&cgroup);
    if (!found)
        return 0;
    u32 slot = found->number;
    struct state *mine = state.lookup(&slot);
    struct { s32 signo, error, code, pad; u64 address; s32 call; u32 arch; } info = {};
    if (!mine || read_kernel(&info, sizeof(info), (void *)ctx->args[1]))
        return 0;
    if (info.code != CODE_SECCOMP)
        return 0;
    u16 flags = 0;
    if (info.arch != ARCH_NATIVE)
        flags |= FLAG_COMPAT;
    if (info.call < 0 || info.call >= CALLS)
        flags |= info.call > 0 && (info.call & NR_X32) ? FLAG_X32 : FLAG_RANGE;
    u32 index = (u32)info.call & (CALLS - 1);
    u8 seen = mine->seen[index];
    struct event event = {};
    fill(&event, cgroup, KIND_SIGSYS, VERDICT_ALERT, flags, info.call, info.arch);
    if (report(&event, sizeof(event), slot, !flags && !(seen & 2)) && !flags)
        mine->seen[index] = seen | 2;
    return 0;
}

// sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm).
// The name is the kernel's own copy. It is shown, not decided on.
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
    u64 cgroup = workload();
    struct slot *found = slots.lookup(&cgroup);
    if (!found)
        return 0;
    u32 slot = found->number;
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    members.update(&pid, &cgroup);
    struct path_event event = {};
    fill(&event.head, cgroup, KIND_EXEC, VERDICT_RECORD, 0, 0, 0);
    u64 name = 0;
    read_kernel(&name, sizeof(name), (void *)ctx->args[2] + OFF_FILENAME);
    read_text(event.path, sizeof(event.path), (void *)name);
    report(&event, sizeof(event), slot, 0);
    return 0;
}

// sched_process_fork(struct task_struct *parent, struct task_struct *child). The attach tracepoint
// fires after the move, so who belonged where has to be known before. A reused pid is cleaned here.
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
    u32 pid = 0;
    if (read_kernel(&pid, sizeof(pid), (void *)ctx->args[1] + OFF_TGID))
        return 0;
    u64 cgroup = workload();
    if (slots.lookup(&cgroup))
        members.update(&pid, &cgroup);
    else
        members.delete(&pid);
    return 0;
}

// The ancestor at LEVEL of a cgroup we were given; 0 when it is higher up.
static __always_inline u64 ancestor(void *cgroup)
{
    s32 level = 0;
    void *parent = 0, *node = 0;
    u64 id = 0;
    read_kernel(&level, sizeof(level), cgroup + OFF_LEVEL);
    if (level < LEVEL)
        return 0;
    read_kernel(&parent, sizeof(parent), cgroup + OFF_ANCESTORS + 8 * LEVEL);
    read_kernel(&node, sizeof(node), parent + OFF_KN);
    read_kernel(&id, sizeof(id), node + OFF_ID);
    return id;
}

// cgroup_attach_task(struct cgroup *dst, const char *path, struct task_struct *task, bool group).
// Any move into or out of a workload is an alert; whether it was ours, the supervisor knows.
int on_attach(struct bpf_raw_tracepoint_args *ctx)
{
    u32 pid = 0;
    if (read_kernel(&pid, sizeof(pid), (void *)ctx->args[2] + OFF_TGID))
        return 0;
    u64 to = ancestor((void *)ctx->args[0]);
    u64 *member = members.lookup(&pid);
    u64 from = member ? *member : 0;
    struct slot *old = slots.lookup(&from);
    struct slot *new = slots.lookup(&to);
    u64 cgroup = to;
    u32 slot;
    u16 flags = 0;
    if (old) {
        cgroup = from;
        slot = old->number;
        flags |= FLAG_MOVED_OUT;
    } else if (new) {
        slot = new->number;
    } else {
        return 0;
    }
    if (new)
        flags |= FLAG_MOVED_IN;
    u8 verdict = VERDICT_ALERT;
    if (from == to) {
        verdict = VERDICT_RECORD;
        flags = 0;
    }
    if (new)
        members.update(&pid, &to);
    else
        members.delete(&pid);

    struct path_event event = {};
    u32 mover = bpf_get_current_pid_tgid() >> 32;
    fill(&event.head, cgroup, KIND_CGROUP, verdict, flags, 0, mover);
    event.head.pid = pid;
    event.head.tid = pid;
    read_text(event.path, sizeof(event.path), (void *)ctx->args[1]);
    report(&event, sizeof(event), slot, 0);
    return 0;
}

// io_uring_submit_req(struct io_kiocb *req): requests run without system calls. A tripwire; our
// seccomp filter refuses io_uring_setup.
int on_uring(struct bpf_raw_tracepoint_args *ctx)
{
    u64 cgroup = workload();
    struct slot *found = slots.lookup(&cgroup);
    if (!found)
        return 0;
    u32 slot = found->number;
    u8 opcode = 0;
    read_kernel(&opcode, sizeof(opcode), (void *)ctx->args[0] + OFF_OPCODE);
    struct event event = {};
    fill(&event, cgroup, KIND_URING, VERDICT_ALERT, 0, opcode, 0);
    report(&event, sizeof(event), slot, 0);
    return 0;
}

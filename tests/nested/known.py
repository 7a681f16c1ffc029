"""What the bare-metal images of tests/guest see differently on the kvm engine inside QEMU, and why.

The CPU there is that of QEMU's translator: what it gets wrong, an image that runs on QEMU alone, with
no hypervisor of ours, sees too (each entry was checked so, with QEMU 7.2).  The local APIC is that of
KVM in the Linux kernel, which leaves some of the architecture out.  Such a result is reported as
skipped, with the reason; everything else counts.
"""

RSVD = 'QEMU: a fault for a reserved bit does not say that the entry was present'
LIMITS = "QEMU: segment limits are not checked"
CANONICAL = 'QEMU: canonical addresses are checked late, or as page faults'
DEBUG = 'QEMU: debug exceptions are recognised at other boundaries, and no instruction pushes RF'
APIC = "KVM's own local APIC: no errors for illegal vectors, reserved bits ignored"

# Images whose guests bring QEMU's translator itself down, make a state its VMRUN refuses, or never end
# on it.  They run on the soft engine, and where /dev/kvm is hardware.
NOT_RUN = {
    'segments': 'QEMU takes a code segment that is both 64- and 32-bit; VMRUN then refuses',
    'msr': 'QEMU takes CR0.NW without CR0.CD; VMRUN then refuses',
    'exc': 'QEMU asserts in LOCK of a register',
    'task': 'QEMU crashes now and then in a task switch',
    'shadow': 'QEMU asserts when it delivers a virtual interrupt in an interrupt shadow',
    'legacy': 'never ends on QEMU: segment limits are not checked',
    'paging32': 'stops on QEMU: segment limits are not checked',
    'timer': 'compares clocks that a busy host lets go by at any pace; on an idle one all of it passes',
}

SLOW = {'the kernel has nothing to complain of': 'the soft engine inside QEMU is so slow that guests mistrust clocks'}

# image, or options of a script: {test: reason}
DIFFERS = {
    'paging': {
        'faults_of_4_kib_pages_follow_the_model': RSVD,
        'faults_of_2_mib_pages_follow_the_model': RSVD,
        'faults_of_1_gib_pages_follow_the_model': RSVD,
        'reserved_bits_come_before_rights': RSVD,
        'bits_of_each_level_mean_what_they_should': RSVD,
        'the_first_bad_level_decides': RSVD,
        'a_write_across_pages_is_all_or_nothing': 'QEMU: a locked access reads before it looks at the right to write',
        'descriptor_reads_are_implicit_supervisor_accesses': 'QEMU: EFLAGS.AC lifts SMAP for implicit accesses too',
    },
    'canonical': dict.fromkeys(
        ('instructions_check_48_bits', 'operands_may_not_leave_the_canonical_range', 'registers_check_48_bits',
         'execution_runs_off_the_canonical_range', 'a_call_at_the_very_end'), CANONICAL),
    'debug': dict.fromkeys(
        ('single_step_traps_where_it_should', 'data_breakpoints_match_overlapping_accesses',
         'a_data_breakpoint_on_the_source_of_mov_ss_waits', 'two_breakpoints_make_one_exception',
         'a_breakpoint_and_a_step_make_one_exception', 'instruction_breakpoints_are_faults_before_the_instruction',
         'instruction_breakpoints_under_single_step', 'io_breakpoints_need_de_and_trap_after',
         'fixed_bits_of_dr6_and_dr7', 'general_detect_guards_the_registers_once', 'int1_and_int3',
         'faults_push_rf'), DEBUG),
    'smc': {
        'nothing_is_fetched_that_is_not_executed': 'QEMU: an instruction is fetched to its end before it is too long',
        'code_changes_under_a_running_cpu': "QEMU: code another CPU changes is found stale only at a block's end",
    },
    'apic': dict.fromkeys(
        ('registers_keep_what_they_should', 'illegal_vectors_are_errors', 'the_error_vector_is_raised',
         'a_masked_timer_counts_and_stays_silent', 'x2apic_registers_modes_and_interrupts'), APIC),
    'modes': dict.fromkeys(
        ('real_mode_routines', 'a_segment_limit_stays_after_protected_mode',
         'protected_mode_with_16_bit_segments'), LIMITS),
    'messages': {
        'the kernel warns of nothing': 'CPUID leaf 0xD stays that of XCR0 = 1: KVM there does not see the XSETBV',
    },
    '--engines soft,kvm': SLOW,
    '--engines kvm,soft': SLOW,
    'v86': dict.fromkeys(
        ('the_frame_of_a_fault_has_all_segments', 'an_iret_beyond_64_kib_is_refused',
         'only_ring_0_can_handle_what_virtual_8086_code_raises', 'instructions_in_virtual_8086_mode'), LIMITS),
}


def reason(name, test):
    """Why this test of the program `name` may fail here; None when it may not."""
    for program, tests in DIFFERS.items():
        if f'/{program}.elf' in name or f' {program} ' in name:
            return tests.get(test)
    return None

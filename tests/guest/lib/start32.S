# start32.S - entry of a 32-bit test guest: flat protected mode, no paging; trips to real mode.
#
# Exceptions save everything in one frame in memory and go on with a stack of their own, so that a
# test may have any SS:ESP, 16-bit segments or virtual-8086 mode when it faults.  They do not nest.
	.set MB_MAGIC, 0x1BADB002
	.set MB_FLAGS, 3

	.section .multiboot, "a", @progbits
	.balign 4
	.long MB_MAGIC, MB_FLAGS, -(MB_MAGIC + MB_FLAGS)

	.section .note.pvh, "a", @note
	.long 4, 4, 18			# XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long _start

	.text
	.code32
	.globl _start
_start:
	cli
	cld
	mov %eax, boot_eax
	mov %ebx, boot_ebx
	mov $boot_stack_top, %esp
	lgdt gdt_pointer
	ljmp $0x08, $1f
1:	call load_segments
	mov $0x33, %eax			# CR0: NE ET MP PE
	mov %eax, %cr0
	call guest_main
	ud2

load_segments:				# keeps ESP: all stacks are flat
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	ret

# Every exception and interrupt; struct trap_frame in guest32.h.
	.globl trap_stubs, trap_common
	.balign 16
trap_stubs:
	.set vec, 0
	.rept 256
	.balign 16
	.if !(vec == 8 || (vec >= 10 && vec <= 14) || vec == 17 || vec == 21)
	push $0
	.endif
	push $vec
	jmp trap_common
	.set vec, vec + 1
	.endr

	.set F_EAX, 0
	.set F_ECX, 4
	.set F_EDX, 8
	.set F_EBX, 12
	.set F_EBP, 16
	.set F_ESI, 20
	.set F_EDI, 24
	.set F_DS, 28
	.set F_ES, 32
	.set F_FS, 36
	.set F_GS, 40
	.set F_VECTOR, 44
	.set F_ERROR, 48
	.set F_EIP, 52
	.set F_CS, 56
	.set F_EFLAGS, 60
	.set F_ESP, 64
	.set F_SS, 68

trap_common:
	push %ds
	push %eax
	mov $0x10, %eax
	mov %eax, %ds
	popl trap_frame + F_EAX
	popl trap_frame + F_DS
	cld
	mov %ecx, trap_frame + F_ECX
	mov %edx, trap_frame + F_EDX
	mov %ebx, trap_frame + F_EBX
	mov %ebp, trap_frame + F_EBP
	mov %esi, trap_frame + F_ESI
	mov %edi, trap_frame + F_EDI
	mov %es, trap_frame + F_ES
	mov %fs, trap_frame + F_FS
	mov %gs, trap_frame + F_GS
	popl trap_frame + F_VECTOR
	popl trap_frame + F_ERROR
	popl trap_frame + F_EIP
	popl trap_frame + F_CS
	popl trap_frame + F_EFLAGS
	testl $0x20000, trap_frame + F_EFLAGS
	jnz 1f
	testl $3, trap_frame + F_CS
	jnz 2f
	mov %esp, trap_frame + F_ESP	# from ring 0: the same stack
	mov %ss, trap_frame + F_SS
	jmp 3f
1:	popl trap_frame + F_ESP		# from virtual-8086 mode
	popl trap_frame + F_SS
	popl trap_frame + F_ES
	popl trap_frame + F_DS
	popl trap_frame + F_FS
	popl trap_frame + F_GS
	jmp 3f
2:	popl trap_frame + F_ESP		# from an outer ring
	popl trap_frame + F_SS
3:	mov $0x10, %eax
	mov %eax, %ss
	mov $trap_stack_top, %esp
	call load_segments
	push $trap_frame
	call trap_handle
	# Back to where it came from.
	testl $0x20000, trap_frame + F_EFLAGS
	jnz 4f
	testl $3, trap_frame + F_CS
	jnz 5f
	lss trap_frame + F_ESP, %esp
	jmp 6f
4:	pushl trap_frame + F_GS
	pushl trap_frame + F_FS
	pushl trap_frame + F_DS
	pushl trap_frame + F_ES
5:	pushl trap_frame + F_SS
	pushl trap_frame + F_ESP
6:	pushl trap_frame + F_EFLAGS
	pushl trap_frame + F_CS
	pushl trap_frame + F_EIP
	mov trap_frame + F_ECX, %ecx
	mov trap_frame + F_EDX, %edx
	mov trap_frame + F_EBX, %ebx
	mov trap_frame + F_EBP, %ebp
	mov trap_frame + F_ESI, %esi
	mov trap_frame + F_EDI, %edi
	testl $0x20000, trap_frame + F_EFLAGS
	jnz 7f				# IRET loads the data segments
	mov trap_frame + F_ES, %es
	mov trap_frame + F_FS, %fs
	mov trap_frame + F_GS, %gs
	mov trap_frame + F_EAX, %eax
	pushl trap_frame + F_DS		# last: all this is read through DS
	pop %ds
	iret
7:	mov trap_frame + F_EAX, %eax
	iret

# int trap_catch_asm(struct trap_catch *c, void (*fn)(void *), void *arg)
	.globl trap_catch_asm, trap_resume
trap_catch_asm:
	push %ebx
	push %ebp
	push %esi
	push %edi
	mov 20(%esp), %eax
	mov %esp, (%eax)
	mov 24(%esp), %edx
	pushl 28(%esp)
	call *%edx
	add $4, %esp
	xor %eax, %eax
1:	pop %edi
	pop %esi
	pop %ebp
	pop %ebx
	ret
# void trap_resume(u32 esp): out of an exception, to the caller of trap_catch_asm
trap_resume:
	mov 4(%esp), %esp
	push $2				# no NT, TF, AC, IOPL
	popf
	mov $1, %eax
	jmp 1b

# --- real mode ---------------------------------------------------------------------------------
# u32 real_call(void): runs the routine at 0000:7000 in real mode with the registers at 5F00h
# (struct real_regs) and a stack below 7000h; its registers are there afterwards.  real_code is
# copied to 0000:6000 first.
	.globl real_call, real_code, real_code_end, real_stub_common
real_call:
	pusha
	mov %esp, real_esp
	sidt real_idtr_saved
	ljmp $0x18, $0x6000
real_back:				# in 32-bit code again
	call load_segments_first
	mov real_esp, %esp
	lidt real_idtr_saved
	popa
	ret
load_segments_first:			# the return address is on the 16-bit stack
	pop %ecx
	mov $0x10, %eax
	mov %eax, %ss
	mov $boot_stack_top, %esp
	push %ecx
	jmp load_segments

	.code16
	.balign 16
real_code:				# at 0000:6000, 16-bit protected mode
	mov $0x20, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov %ax, %fs
	mov %ax, %gs
	mov %cr0, %eax
	and $~1, %al
	mov %eax, %cr0
	ljmp $0, $0x6000 + (1f - real_code)
1:	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov %ax, %fs
	mov %ax, %gs
	mov $0x7000, %sp
	lidtl %cs:0x6000 + (real_idtr - real_code)
	mov 0x5f00 + 4, %ecx
	mov 0x5f00 + 8, %edx
	mov 0x5f00 + 12, %ebx
	mov 0x5f00 + 16, %ebp
	mov 0x5f00 + 20, %esi
	mov 0x5f00 + 24, %edi
	mov 0x5f00, %eax
	lcall $0, $0x7000
	movw $0xffff, %cs:0x5f00 + 44	# nothing was raised
real_leave:
	cli
	mov %eax, %cs:0x5f00
	mov %ecx, %cs:0x5f00 + 4
	mov %edx, %cs:0x5f00 + 8
	mov %ebx, %cs:0x5f00 + 12
	mov %ebp, %cs:0x5f00 + 16
	mov %esi, %cs:0x5f00 + 20
	mov %edi, %cs:0x5f00 + 24
	mov %ds, %cs:0x5f00 + 28
	mov %es, %cs:0x5f00 + 32
	mov %ss, %cs:0x5f00 + 36
	mov %esp, %cs:0x5f00 + 40
	lgdtl %cs:0x6000 + (real_gdtr_low - real_code)
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $0x08, $real_back
# An exception in real mode: its vector was pushed; IP, CS and FLAGS lie above.
real_stub_common:
	popw %cs:0x5f00 + 44
	popw %cs:0x5f00 + 48
	popw %cs:0x5f00 + 52
	popw %cs:0x5f00 + 56
	jmp real_leave
	.balign 4
real_idtr:
	.word 0x3ff
	.long 0
real_gdtr_low:
	.word gdt_end - gdt - 1
	.long gdt
real_code_end:
	.code32

	.data
	.balign 16
	.globl gdt, gdt_end, boot_eax, boot_ebx
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	# 08 kernel code
	.quad 0x00cf93000000ffff	# 10 kernel data
	.quad 0x00009b000000ffff	# 18 code, 16-bit, as in real mode
	.quad 0x000093000000ffff	# 20 data, 16-bit, as in real mode
	.quad 0x00cffb000000ffff	# 28 user code (2b)
	.quad 0x00cff3000000ffff	# 30 user data (33)
	.quad 0				# 38 TSS
	.fill 32, 8, 0			# 40 and up: for tests
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
	.balign 4
boot_eax: .long 0
boot_ebx: .long 0
real_esp: .long 0
real_idtr_saved: .skip 8

	.bss
	.balign 4096
	.globl trap_frame, boot_stack_top
trap_frame: .skip 96
	.balign 16
	.skip 16384
trap_stack_top:
	.skip 65536
boot_stack_top:
	.section .note.GNU-stack, "", @progbits

# start.S - entry of a bare-metal test guest: from multiboot 1 or PVH to long mode, then main().
#
# Either way the CPU arrives in 32-bit protected mode, paging off, flat segments.  The first 4 GiB
# are identity-mapped with 2 MiB pages, user-accessible, so that ring 3 code runs from the image.
	.set MB_MAGIC, 0x1BADB002
	.set MB_FLAGS, 3		# page-align modules, memory info

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
	call build_page_tables
	mov $1, %eax
	mov %eax, bsp_up
	jmp enter_long_mode

build_page_tables:
	movl $(boot_pdpt + 7), boot_pml4
	movl $(boot_pd + 7), boot_pdpt
	movl $(boot_pd + 0x1007), boot_pdpt + 8
	movl $(boot_pd + 0x2007), boot_pdpt + 16
	movl $(boot_pd + 0x3007), boot_pdpt + 24
	xor %ecx, %ecx
1:	mov %ecx, %eax
	shl $21, %eax
	or $0x87, %eax
	mov %eax, boot_pd(,%ecx,8)
	inc %ecx
	cmp $2048, %ecx
	jne 1b
	ret

enter_long_mode:			# esp is the stack of this CPU
	mov $0x620, %eax		# CR4: PAE, OSFXSR, OSXMMEXCPT
	mov %eax, %cr4
	mov $boot_pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x901, %eax			# EFER: LME, NXE, SCE
	wrmsr
	mov $0x80010033, %eax		# CR0: PG WP NE ET MP PE
	mov %eax, %cr0
	lgdt gdt_pointer
	ljmp $0x08, $long_mode

	.code64
long_mode:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %eax, %eax
	mov %eax, %fs
	mov %eax, %gs
	lldt %ax			# reset leaves a table at 0
	mov %esp, %esp
	cmpl $0, ap_starting
	jne 1f
	call guest_main
	ud2
1:	call guest_ap_main
2:	cli
	hlt
	jmp 2b

# Every exception and interrupt comes here with its vector pushed; struct trap_frame in guest.h.
	.globl trap_stubs
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

trap_common:
	push %r15
	push %r14
	push %r13
	push %r12
	push %r11
	push %r10
	push %r9
	push %r8
	push %rdi
	push %rsi
	push %rbp
	push %rbx
	push %rdx
	push %rcx
	push %rax
	cld
	mov %rsp, %rdi
	call trap_handle
	pop %rax
	pop %rcx
	pop %rdx
	pop %rbx
	pop %rbp
	pop %rsi
	pop %rdi
	pop %r8
	pop %r9
	pop %r10
	pop %r11
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	add $16, %rsp
	iretq

# long trap_catch_asm(struct trap_catch *c, void (*fn)(void *), void *arg)
# Runs fn(arg); trap_handle resumes at trap_caught, with rsp restored, when an exception is caught.
	.globl trap_catch_asm, trap_caught
trap_catch_asm:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, (%rdi)
	mov %rsi, %rax
	mov %rdx, %rdi
	call *%rax
	xor %eax, %eax
	jmp 1f
trap_caught:				# rsp was set from the struct
	mov $1, %eax
1:	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

# void paging_switch(u64 cr3, u64 cr4): out of long mode and in again with another kind of paging.
	.globl paging_switch
paging_switch:
	push %rbx
	push %rbp
	pushfq
	cli
	mov %rdi, %rbx
	mov %rsi, %rbp
	pushq $0x18
	pushq $1f
	lretq
	.code32
1:	mov %cr0, %eax
	and $0x7fffffff, %eax
	mov %eax, %cr0
	mov %ebp, %cr4
	mov %ebx, %cr3
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	ljmp $0x08, $1f
	.code64
1:	popfq
	pop %rbp
	pop %rbx
	ret

# Start-up code of the other CPUs, copied to 0x8000: real mode to the code above.
	.globl ap_trampoline, ap_trampoline_end
	.code16
ap_trampoline:
	cli
	xor %ax, %ax
	mov %ax, %ds
	lgdtl (0x8000 + ap_gdt_pointer - ap_trampoline)
	mov $1, %eax
	mov %eax, %cr0
	ljmpl $0x18, $ap_protected
ap_gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
ap_trampoline_end:
	.code32
ap_protected:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov ap_stack, %esp
	jmp enter_long_mode

	.data
	.balign 16
	.globl gdt, gdt_end, gdt_pointer, boot_eax, boot_ebx, ap_starting, ap_stack, bsp_up
gdt:
	.quad 0
	.quad 0x00af9b000000ffff	# 08 kernel code, 64-bit
	.quad 0x00cf93000000ffff	# 10 kernel data
	.quad 0x00cf9b000000ffff	# 18 kernel code, 32-bit
	.quad 0x00cff3000000ffff	# 20 user data (23)
	.quad 0x00affb000000ffff	# 28 user code, 64-bit (2b)
	.quad 0x00cffb000000ffff	# 30 user code, 32-bit (33)
	.quad 0x008f9b000000ffff	# 38 kernel code, 16-bit
	.quad 0x008f93000000ffff	# 40 kernel data, 16-bit
	.quad 0, 0			# 48 TSS of the first CPU, 64-bit
	.fill 32, 8, 0			# 58 and up: for tests
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
boot_eax: .long 0
boot_ebx: .long 0
ap_starting: .long 0
ap_stack: .long 0
bsp_up:	.long 0

	.bss
	.balign 4096
	.globl boot_pml4, boot_pdpt, boot_pd, boot_stack_top
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4 * 4096
	.skip 65536
boot_stack_top:
	.section .note.GNU-stack, "", @progbits

#!/usr/bin/env python3
"""Keep one VM open: hold.py, until it is killed.

The first VM of a host switches virtualization on on all its CPUs and the last one off, and a vCPU
without a local APIC in the kernel has kernel code patched.  Done for each of a hundred short VMs, that
hangs a kernel under QEMU's TCG now and then.  With one that stays it is done once.
"""
import fcntl
import os
import time

KVM_CREATE_VM, KVM_CREATE_VCPU = 0xae01, 0xae41
try:
    kvm = os.open('/dev/kvm', os.O_RDWR)
except OSError:
    raise SystemExit(0)
vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
cpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
while True:
    time.sleep(1000)

/* bus/pci_regs.h - names of the bits in PCI configuration space.
 * PCI Local Bus 3.0 chapter 6, PCI Express Base 4.0 chapter 7.  Constants only. */
#pragma once

// clang-format off
enum {
	PCI_VENDOR_ID       = 0x00, PCI_DEVICE_ID       = 0x02,
	PCI_COMMAND         = 0x04, PCI_STATUS          = 0x06,
	PCI_REVISION        = 0x08, PCI_PROG_IF         = 0x09,
	PCI_CLASS           = 0x0a, PCI_CACHE_LINE      = 0x0c,
	PCI_LATENCY         = 0x0d, PCI_HEADER_TYPE     = 0x0e,
	PCI_BAR0            = 0x10, PCI_SUBSYS_VENDOR   = 0x2c,
	PCI_SUBSYS_ID       = 0x2e, PCI_CAP_PTR         = 0x34,
	PCI_INTERRUPT_LINE  = 0x3c, PCI_INTERRUPT_PIN   = 0x3d,
	PCI_CFG_HEADER_SIZE = 0x40, PCI_CFG_LEGACY_SIZE = 0x100,
	PCI_CFG_SIZE        = 0x1000,

	PCI_COMMAND_IO      = 1 << 0, PCI_COMMAND_MEM    = 1 << 1,
	PCI_COMMAND_MASTER  = 1 << 2, PCI_COMMAND_PARITY = 1 << 6,
	PCI_COMMAND_SERR    = 1 << 8, PCI_COMMAND_INTX_DISABLE = 1 << 10,

	PCI_STATUS_INTX     = 1 << 3, PCI_STATUS_CAPS    = 1 << 4,
	PCI_STATUS_ERRORS   = 0xf900, /* write one to clear */

	PCI_HEADER_MULTIFUNCTION = 0x80,

	PCI_BAR_IS_IO       = 1 << 0, PCI_BAR_IS_64      = 2 << 1,
	PCI_BAR_IS_PREFETCH = 1 << 3,

	PCI_CAP_PM          = 0x01, PCI_CAP_MSI         = 0x05,
	PCI_CAP_VENDOR      = 0x09, PCI_CAP_EXPRESS     = 0x10,
	PCI_CAP_MSIX        = 0x11,

	PCI_MSI_CONTROL     = 2,    PCI_MSI_ADDR        = 4,
	PCI_MSI_DATA        = 12,   PCI_MSI_MASK        = 16,
	PCI_MSI_PENDING     = 20,   PCI_MSI_SIZE        = 24, /* 64-bit with masks */
	PCI_MSI_ENABLE      = 1 << 0, PCI_MSI_64        = 1 << 7,
	PCI_MSI_MASKABLE    = 1 << 8,

	PCI_MSIX_CONTROL    = 2,    PCI_MSIX_SIZE       = 12,
	PCI_MSIX_ENABLE     = 1 << 15, PCI_MSIX_MASK_ALL = 1 << 14,
	PCI_MSIX_ENTRY_SIZE = 16,   PCI_MSIX_ENTRY_CTRL = 12,
};
// clang-format on

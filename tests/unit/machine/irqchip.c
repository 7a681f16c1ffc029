/* I/O APIC, 8259 pair, MSI and the wires between, as a guest drives them. */
#include "board.h"
#include "bus/pci.h"
#include "machine/irqchip/pic.h"

/* ---- I/O APIC ---- */

TEST(ioapic_has_24_masked_pins)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(0x00170020, ioapic_read(&b, 1));
	CHECK_EQ(0x00010000, ioapic_read(&b, 0x10 + 23 * 2));
	CHECK_EQ(0, ioapic_read(&b, 0x10 + 24 * 2));
	board_stop(&b);
}

TEST(an_edge_is_one_interrupt)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 2, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	apic_enable(&b, 1);
	ioapic_route(&b, 4, 0x34, 1);
	irq_set(&com, true);
	CHECK_EQ(0x34, ack(&b, 1));
	apic_eoi(&b, 1);
	CHECK(!b.intr[1]);
	irq_set(&com, false);
	irq_set(&com, true);
	CHECK(b.intr[1]);
	board_stop(&b);
}

TEST(an_edge_that_came_while_masked_is_delivered_if_the_line_is_still_high)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 1, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	apic_enable(&b, 0);
	irq_set(&com, true);
	ioapic_route(&b, 4, 0x34, 0);
	CHECK_EQ(0x34, ack(&b, 0));
	apic_eoi(&b, 0);
	ioapic_route(&b, 4, 1 << 16 | 0x34, 0);
	irq_set(&com, false);
	irq_set(&com, true);
	irq_set(&com, false);
	ioapic_route(&b, 4, 0x34, 0);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(irq0_arrives_at_pin_2)
{
	struct board b;
	struct irq_line pit;

	board_start(&b, 1, 16 * MiB);
	pit = machine_isa_irq(b.machine, 0);
	apic_enable(&b, 0);
	ioapic_route(&b, 0, 0x30, 0);
	ioapic_route(&b, 2, 0x32, 0);
	irq_set(&pit, true);
	CHECK_EQ(0x32, ack(&b, 0));
	board_stop(&b);
}

/* The SCI is level-triggered: hold it by the power button. */
static void hold_sci(struct board *b)
{
	out(b, PORT_PM + 2, 1 << 8, 2);
	machine_power_button(b->machine);
}

TEST(a_level_interrupt_comes_again_after_eoi_while_the_line_is_high)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	ioapic_route(&b, IRQ_SCI, 1 << 15 | 0x39, 0);
	hold_sci(&b);
	CHECK_EQ(1 << 14 | 1 << 15 | 0x39, ioapic_read(&b, 0x10 + IRQ_SCI * 2));
	CHECK_EQ(0x39, ack(&b, 0));
	CHECK_EQ(1u << 25, apic_read(&b, 0, APIC_TMR + 0x10));
	CHECK(!b.intr[0]); /* remote IRR holds it back */
	apic_eoi(&b, 0);
	CHECK_EQ(0x39, ack(&b, 0));
	out(&b, PORT_PM, 1 << 8, 2); /* the handler clears the cause */
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	CHECK_EQ(1 << 15 | 0x39, ioapic_read(&b, 0x10 + IRQ_SCI * 2));
	board_stop(&b);
}

TEST(the_ioapic_eoi_register_ends_a_level_interrupt)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	ioapic_route(&b, IRQ_SCI, 1 << 15 | 0x39, 0);
	hold_sci(&b);
	out(&b, PORT_PM, 1 << 8, 2);
	mmio_write(&b, 0, MEMMAP_IOAPIC + 0x40, 0x39, 4);
	CHECK_EQ(1 << 15 | 0x39, ioapic_read(&b, 0x10 + IRQ_SCI * 2));
	board_stop(&b);
}

TEST(a_turn_through_edge_mode_clears_remote_irr)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	ioapic_route(&b, IRQ_SCI, 1 << 15 | 0x39, 0);
	hold_sci(&b);
	ioapic_write(&b, 0x10 + IRQ_SCI * 2, 1 << 16 | 0x39);
	ioapic_write(&b, 0x10 + IRQ_SCI * 2, 1 << 16 | 1 << 15 | 0x39);
	CHECK_EQ(1 << 16 | 1 << 15 | 0x39, ioapic_read(&b, 0x10 + IRQ_SCI * 2));
	board_stop(&b);
}

TEST(logical_lowest_priority_entry_picks_one_cpu)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 2, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	for (unsigned i = 0; i < 2; i++) {
		apic_enable(&b, i);
		apic_write(&b, i, APIC_LDR, 1u << (24 + i));
	}
	apic_write(&b, 0, APIC_TPR, 0x10);
	ioapic_route(&b, 4, 1 << 11 | 1 << 8 | 0x34, 3);
	irq_set(&com, true);
	CHECK(!b.intr[0] && b.intr[1]);
	board_stop(&b);
}

TEST(sources_on_one_wire_are_ored)
{
	struct board b;
	struct irq_line com1, com3;

	board_start(&b, 1, 16 * MiB);
	com1 = machine_isa_irq(b.machine, 4);
	com3 = machine_isa_irq(b.machine, 4);
	apic_enable(&b, 0);
	ioapic_route(&b, 4, 1 << 15 | 0x34, 0);
	irq_set(&com1, true);
	irq_set(&com3, true);
	irq_set(&com1, false);
	CHECK_EQ(0x34, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK_EQ(0x34, ack(&b, 0)); /* COM3 still wants something */
	irq_set(&com3, false);
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

/* ---- MSI ---- */

TEST(msi_names_a_cpu_and_a_vector)
{
	struct board b;
	struct msi_sink msi;

	board_start(&b, 2, 16 * MiB);
	msi = machine_msi(b.machine);
	apic_enable(&b, 1);
	msi_send(&msi, 0xFEE01000, 0x4056);
	CHECK_EQ(0x56, ack(&b, 1));
	CHECK_EQ(0, apic_read(&b, 1, APIC_TMR + 0x20));
	board_stop(&b);
}

TEST(msi_elsewhere_is_lost)
{
	struct board b;
	struct msi_sink msi;

	board_start(&b, 1, 16 * MiB);
	msi = machine_msi(b.machine);
	apic_enable(&b, 0);
	msi_send(&msi, 0x1FEE00000, 0x56);
	msi_send(&msi, 0xFED00000, 0x56);
	msi_send(&msi, 0xFEE7F000, 0x56);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

/* ---- the 8259 pair ---- */

TEST(pic_interrupt_goes_through_lint0)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 2, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	pic_start(&b, 1);
	irq_set(&com, true);
	CHECK(b.intr[0] && !b.intr[1]);
	CHECK_EQ(0x24, ack(&b, 0));
	CHECK(!b.intr[0]);
	outb(&b, 0x20, 0x0B); /* read the ISR */
	CHECK_EQ(1 << 4, inb(&b, 0x20));
	outb(&b, 0x20, 0x20);
	CHECK_EQ(0, inb(&b, 0x20));
	board_stop(&b);
}

TEST(pic_output_is_intr_itself_when_the_apic_is_off)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 2, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	CHECK(wrmsr(&b, 0, MSR_APIC_BASE, MEMMAP_LAPIC));
	pic_start(&b, 1);
	irq_set(&com, true);
	CHECK(b.intr[0]);
	CHECK_EQ(0x24, ack(&b, 0));
	board_stop(&b);
}

TEST(masking_lint0_cuts_the_pic_off)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 1, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	pic_start(&b, 1);
	irq_set(&com, true);
	apic_write(&b, 0, APIC_LVT_LINT0, 1 << 16 | 7 << 8);
	CHECK(!b.intr[0]);
	apic_write(&b, 0, APIC_LVT_LINT0, 7 << 8);
	CHECK(b.intr[0]);
	board_stop(&b);
}

TEST(slave_inputs_cascade_through_input_2)
{
	struct board b;
	struct irq_line disk, com;

	board_start(&b, 1, 16 * MiB);
	disk = machine_isa_irq(b.machine, 14);
	com = machine_isa_irq(b.machine, 4);
	pic_start(&b, 1);
	irq_set(&com, true);
	irq_set(&disk, true);
	/* Input 2 outranks input 4. */
	CHECK_EQ(0x2E, ack(&b, 0));
	CHECK(!b.intr[0]);
	outb(&b, 0xA0, 0x20);
	CHECK(!b.intr[0]); /* the master still serves input 2 */
	outb(&b, 0x20, 0x20);
	CHECK_EQ(0x24, ack(&b, 0));
	board_stop(&b);
}

/* Between INTR and INTA the request may go away; here the pair stands alone to get in between. */
TEST(a_request_that_goes_away_is_answered_with_input_7)
{
	struct bus *bus;
	struct pic *pic;

	CHECK_EQ(0, bus_create(&bus, NULL));
	CHECK_EQ(0, pic_create(&pic, bus, (struct irq_line){0}, NULL));
	pic_firmware(pic, 0);
	bus_pio_write(bus, 0x21, 0, 1);
	pic_set(pic, 4, true);
	pic_set(pic, 4, false);
	CHECK_EQ(0x08 + 7, pic_ack(pic));
	bus_pio_write(bus, 0x20, 0x0B, 1);
	CHECK_EQ(0, bus_pio_read(bus, 0x20, 1)); /* nothing is in service */
	pic_destroy(pic);
	bus_destroy(bus);
}

TEST(a_slave_whose_only_request_is_masked_in_time_answers_with_input_7)
{
	struct bus *bus;
	struct pic *pic;

	CHECK_EQ(0, bus_create(&bus, NULL));
	CHECK_EQ(0, pic_create(&pic, bus, (struct irq_line){0}, NULL));
	pic_firmware(pic, 0);
	bus_pio_write(bus, 0x21, 0, 1);
	bus_pio_write(bus, 0xA1, 0, 1);
	pic_set(pic, 14, true);
	bus_pio_write(bus, 0xA1, 0xFF, 1);
	CHECK_EQ(0x08 + 7, pic_ack(pic));
	pic_destroy(pic);
	bus_destroy(bus);
}

TEST(firmware_leaves_every_input_masked)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 1, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	irq_set(&com, true);
	CHECK(!b.intr[0]);
	CHECK_EQ(0xFF, inb(&b, 0x21));
	CHECK_EQ(0xFF, inb(&b, 0xA1));
	board_stop(&b);
}

TEST(masked_inputs_wait)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 1, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	pic_start(&b, 1);
	outb(&b, 0x21, 1 << 4);
	irq_set(&com, true);
	CHECK(!b.intr[0]);
	CHECK_EQ(1 << 4, inb(&b, 0x20)); /* IRR */
	outb(&b, 0x21, 0);
	CHECK(b.intr[0]);
	board_stop(&b);
}

TEST(auto_eoi_leaves_nothing_in_service)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 1, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	pic_start(&b, 3);
	irq_set(&com, true);
	CHECK_EQ(0x24, ack(&b, 0));
	outb(&b, 0x20, 0x0B);
	CHECK_EQ(0, inb(&b, 0x20));
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(rotation_makes_the_served_input_the_last)
{
	struct board b;
	struct irq_line com1, com2;

	board_start(&b, 1, 16 * MiB);
	com2 = machine_isa_irq(b.machine, 3);
	com1 = machine_isa_irq(b.machine, 4);
	pic_start(&b, 1);
	irq_set(&com2, true);
	CHECK_EQ(0x23, ack(&b, 0));
	outb(&b, 0x20, 0xA0); /* rotate on non-specific EOI */
	irq_set(&com2, false);
	irq_set(&com1, true);
	irq_set(&com2, true);
	CHECK_EQ(0x24, ack(&b, 0));
	board_stop(&b);
}

TEST(polling_acknowledges_without_the_cpu)
{
	struct board b;
	struct irq_line com;

	board_start(&b, 1, 16 * MiB);
	com = machine_isa_irq(b.machine, 4);
	pic_start(&b, 1);
	irq_set(&com, true);
	outb(&b, 0x20, 0x0C);
	CHECK_EQ(0x84, inb(&b, 0x20));
	CHECK(!b.intr[0]);
	outb(&b, 0x20, 0x0C);
	CHECK_EQ(0, inb(&b, 0x20));
	board_stop(&b);
}

TEST(special_mask_mode_lets_lower_inputs_through)
{
	struct board b;
	struct irq_line com2, com1;

	board_start(&b, 1, 16 * MiB);
	com2 = machine_isa_irq(b.machine, 3);
	com1 = machine_isa_irq(b.machine, 4);
	pic_start(&b, 1);
	irq_set(&com2, true);
	CHECK_EQ(0x23, ack(&b, 0));
	irq_set(&com1, true);
	CHECK(!b.intr[0]);
	outb(&b, 0x20, 0x68); /* set special mask mode */
	outb(&b, 0x21, 1 << 3);
	CHECK_EQ(0x24, ack(&b, 0));
	board_stop(&b);
}

TEST(elcr_makes_an_input_level_triggered)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	pic_start(&b, 1);
	CHECK_EQ(0x0E, inb(&b, PORT_ELCR + 1)); /* 9, 10 and 11, as firmware leaves it */
	hold_sci(&b);
	CHECK_EQ(0x29, ack(&b, 0));
	outb(&b, 0xA0, 0x20);
	outb(&b, 0x20, 0x20);
	CHECK_EQ(0x29, ack(&b, 0));
	out(&b, PORT_PM, 1 << 8, 2);
	outb(&b, 0xA0, 0x20);
	outb(&b, 0x20, 0x20);
	CHECK(!b.intr[0]);
	outb(&b, PORT_ELCR, 0xFF);
	CHECK_EQ(0xF8, inb(&b, PORT_ELCR)); /* 0, 1 and 2 cannot be level */
	board_stop(&b);
}

/* ---- PCI lines ---- */

static void plug(struct board *b, struct pci_dev *d)
{
	static const struct pci_id id = {
		.vendor = 0x1AF4, .device = 1, .class_code = 0xFF0000, .intx_pin = 1};
	static const struct machine_legacy legacy;
	struct error err;

	pci_dev_init(d, "probe", &id, NULL);
	CHECK_EQ(0, pci_dev_attach(d, machine_pci(b->machine), PCI_DEVFN(3, 0), &err));
	CHECK_EQ(0, machine_finish(b->machine, &legacy, &err));
}

TEST(a_pci_line_reaches_its_ioapic_pin)
{
	struct board b;
	struct pci_dev d;
	unsigned pin;

	board_start(&b, 1, 16 * MiB);
	plug(&b, &d);
	pin = GSI_PCI_FIRST + pci_pirq_of(3, 1);
	apic_enable(&b, 0);
	ioapic_route(&b, pin, 1 << 15 | 0x60, 0);
	pci_intx_set(&d, true);
	CHECK_EQ(0x60, ack(&b, 0));
	pci_intx_set(&d, false);
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	pci_dev_detach(&d);
	pci_dev_fini(&d);
	board_stop(&b);
}

TEST(a_pci_line_reaches_the_pic_where_firmware_routed_it)
{
	struct board b;
	struct pci_dev d;
	uint8_t irq;

	board_start(&b, 1, 16 * MiB);
	plug(&b, &d);
	irq = pci_cfg_read(&d, PCI_INTERRUPT_LINE, 1);
	CHECK(irq == 10 || irq == 11);
	pic_start(&b, 1);
	pci_intx_set(&d, true);
	CHECK_EQ(0x20 + irq, ack(&b, 0));
	pci_dev_detach(&d);
	pci_dev_fini(&d);
	board_stop(&b);
}

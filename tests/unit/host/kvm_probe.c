/* The probe against what every machine has (no device, a wrong one, one we may not open), against
 * this host's own KVM whatever it is, and its judgement and words against a table. */
#include "host/kvm_probe.h"

#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

static struct kvm_probe probe(const char *device)
{
	struct kvm_probe p;

	memset(&p, 0xa5, sizeof(p));
	kvm_probe(device, &p);
	return p;
}

TEST(no_device)
{
	struct kvm_probe p = probe("/nonexistent/kvm");
	char text[100];

	CHECK_EQ(KVM_PROBE_ABSENT, p.state);
	CHECK_EQ(ENOENT, p.error);
	kvm_probe_describe(&p, text, sizeof(text));
	CHECK_STR("no /dev/kvm", text);
}

TEST(something_else_at_its_place)
{
	struct kvm_probe p = probe("/dev/null");

	CHECK_EQ(KVM_PROBE_ABSENT, p.state);
	CHECK_EQ(KVM_PROBE_ABSENT, probe("/").state);
}

TEST(no_permission)
{
	char path[] = "/tmp/kvm_probe.XXXXXX";
	int fd = mkstemp(path);
	struct kvm_probe p;

	CHECK(fd >= 0);
	fchmod(fd, 0);
	if (geteuid() == 0)
		CHECK(seteuid(65534) == 0);
	p = probe(path);
	if (getuid() == 0)
		CHECK(seteuid(0) == 0);
	unlink(path);
	CHECK_EQ(KVM_PROBE_NO_PERMISSION, p.state);
	CHECK_EQ(EACCES, p.error);
}

static unsigned count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void own_handler(int sig)
{
}

TEST(this_host)
{
	unsigned fds = count_fds();
	struct sigaction act = {.sa_handler = own_handler}, after;
	struct kvm_probe p;
	char text[200];

	CHECK(sigaction(SIGRTMAX, &act, NULL) == 0);
	p = probe(KVM_DEVICE);
	kvm_probe_describe(&p, text, sizeof(text));
	printf("# %s; %.1f, %.1f million/s; %.1f ms\n", text, p.plain_minsn, p.privileged_minsn,
	       p.cost_ns / 1e6);
	CHECK_EQ(fds, count_fds());
	CHECK(sigaction(SIGRTMAX, NULL, &after) == 0);
	CHECK(after.sa_handler == own_handler);
	if (p.state == KVM_PROBE_FAST || p.state == KVM_PROBE_EMULATED) {
		CHECK(p.plain_minsn > 0);
		CHECK_EQ(kvm_probe_judge(p.plain_minsn, p.privileged_minsn), p.state);
	} else {
		SKIP(text);
	}
}

/* A host that has a KVM of any kind runs the guest to its end; nested-KVM tests rely on this one.
 */
TEST(this_host_is_fast_under_nested_kvm)
{
	struct kvm_probe p;

	if (!getenv("NESTED_KVM"))
		SKIP("not in the nested-KVM harness");
	p = probe(KVM_DEVICE);
	CHECK_EQ(KVM_PROBE_FAST, p.state);
}

TEST(judgement)
{
	CHECK_EQ(KVM_PROBE_EMULATED, kvm_probe_judge(1.5, 0));
	CHECK_EQ(KVM_PROBE_EMULATED, kvm_probe_judge(1.5, 1.4));
	CHECK_EQ(KVM_PROBE_EMULATED, kvm_probe_judge(19, 19));
	CHECK_EQ(KVM_PROBE_EMULATED, kvm_probe_judge(4000, 0.001));
	CHECK_EQ(KVM_PROBE_FAST, kvm_probe_judge(360, 200));
	CHECK_EQ(KVM_PROBE_FAST, kvm_probe_judge(500, 0.1));
	CHECK_EQ(KVM_PROBE_FAST, kvm_probe_judge(4000, 900));
}

TEST(words)
{
	static const struct {
		struct kvm_probe p;
		const char *words;
	} cases[] = {
		{{KVM_PROBE_ABSENT, "opening it", ENODEV}, "/dev/kvm has no KVM behind it"},
		{{KVM_PROBE_NO_PERMISSION, "opening it", EACCES}, "no permission to open /dev/kvm"},
		{{KVM_PROBE_BUSY, "KVM_CREATE_VM", EBUSY},
		 "another hypervisor holds the CPU's virtualization"},
		{{KVM_PROBE_BROKEN, "KVM_RUN", EINVAL},
		 "KVM does not work: KVM_RUN: Invalid argument"},
		{{KVM_PROBE_BROKEN, "the test guest did not end", 0},
		 "KVM does not work: the test guest did not end"},
		{{KVM_PROBE_EMULATED, NULL, 0, 1.5, 0},
		 "KVM emulates ring 0: 1.5 million instructions/s"},
		{{KVM_PROBE_EMULATED, NULL, 0, 900, 0.01},
		 "KVM emulates ring 0: 0.0 million privileged instructions/s"},
		{{KVM_PROBE_FAST, NULL, 0, 3456, 900},
		 "KVM at hardware speed: 3456 million instructions/s in ring 0"},
	};
	char text[200];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		kvm_probe_describe(&cases[i].p, text, sizeof(text));
		CHECK_STR(cases[i].words, text);
	}
}

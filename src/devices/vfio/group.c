/* devices/vfio/group.c - may this device be passed through?
 *
 * Devices of one IOMMU group can reach each other behind the IOMMU's back, so all of a group's
 * endpoints must be in our hands (kernel documentation, driver-api/vfio.rst). */
#include "base/error.h"
#include "devices/vfio/backend.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The last part of where a link points to. */
static int link_name(char *out, size_t cap, const char *path)
{
	char to[PATH_MAX];
	ssize_t n = readlink(path, to, sizeof(to) - 1);
	const char *slash;

	if (n < 0)
		return -errno;
	to[n] = 0;
	slash = strrchr(to, '/');
	slash = slash ? slash + 1 : to;
	if (strlen(slash) >= cap)
		return -ENAMETOOLONG;
	memcpy(out, slash, strlen(slash) + 1);
	return 0;
}

static bool is_address(const char *a)
{
	unsigned domain, bus, slot, fn;
	int n = 0;

	return sscanf(a, "%4x:%2x:%2x.%1x%n", &domain, &bus, &slot, &fn, &n) == 4 && n == 12 &&
	       !a[n];
}

/* Bridges are not ours to bind; whoever sits on no driver does no harm. */
static bool is_harmless(const char *sysfs, const char *address, char *driver, size_t cap)
{
	char path[PATH_MAX], class[16] = "";
	FILE *f;

	snprintf(path, sizeof(path), "%s/bus/pci/devices/%s/driver", sysfs, address);
	if (link_name(driver, cap, path) < 0 || !strcmp(driver, "vfio-pci") ||
	    !strcmp(driver, "pci-stub") || !strcmp(driver, "pcieport"))
		return true;
	snprintf(path, sizeof(path), "%s/bus/pci/devices/%s/class", sysfs, address);
	f = fopen(path, "re");
	if (f && !fgets(class, sizeof(class), f))
		class[0] = 0;
	if (f)
		fclose(f);
	return !strncmp(class, "0x0604", 6);
}

static int check_members(const char *sysfs, const char *address, unsigned group, struct error *err)
{
	char path[PATH_MAX], driver[64];
	struct dirent *e;
	int r = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/kernel/iommu_groups/%u/devices", sysfs, group);
	d = opendir(path);
	if (!d)
		return err_errno(err, errno, "%s: cannot look at IOMMU group %u", address, group);
	while (r == 0 && (e = readdir(d))) {
		if (e->d_name[0] == '.' || is_harmless(sysfs, e->d_name, driver, sizeof(driver)))
			continue;
		r = err_set(err, EBUSY,
			    "%s: IOMMU group %u also holds %s, which this host uses with driver "
			    "'%s'; bind it to vfio-pci too",
			    address, group, e->d_name, driver);
	}
	closedir(d);
	return r;
}

int vfio_group_check(const char *sysfs, const char *address, unsigned *group, struct error *err)
{
	char path[PATH_MAX], name[64];

	if (!is_address(address))
		return err_set(err, EINVAL,
			       "'%s' is not a PCI address as `lspci -D` prints it (0000:65:00.0)",
			       address);
	snprintf(path, sizeof(path), "%s/bus/pci/devices/%s", sysfs, address);
	if (access(path, F_OK) < 0)
		return err_set(err, ENODEV, "there is no PCI device %s on this host", address);
	snprintf(path, sizeof(path), "%s/bus/pci/devices/%s/iommu_group", sysfs, address);
	if (link_name(name, sizeof(name), path) < 0)
		return err_set(err, ENODEV,
			       "%s is in no IOMMU group: the IOMMU is off (firmware setup; kernel "
			       "options intel_iommu=on or amd_iommu=on)",
			       address);
	*group = (unsigned)strtoul(name, NULL, 10);
	snprintf(path, sizeof(path), "%s/bus/pci/devices/%s/driver", sysfs, address);
	if (link_name(name, sizeof(name), path) < 0 || strcmp(name, "vfio-pci"))
		return err_set(err, EBUSY,
			       "%s is not bound to vfio-pci: `driverctl set-override %s vfio-pci` "
			       "does that",
			       address, address);
	return check_members(sysfs, address, *group, err);
}

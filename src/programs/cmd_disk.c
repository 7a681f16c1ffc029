/* cmd_disk.c - hv disk: starts hv-disk. */
#include "programs/hv.h"

int cmd_disk(int argc, char **argv)
{
	return run_helper("disk", "hv-disk", argv);
}

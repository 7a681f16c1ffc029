/* cmd_recover.c - hv recover: starts hv-recover. */
#include "programs/hv.h"

int cmd_recover(int argc, char **argv)
{
	return run_helper("recover", "hv-recover", argv);
}

/*
 * The witness: the only program of a lab guest. It writes records to its disks, each durable before it is acknowledged
 * on the serial console, so that whoever keeps the console's lines knows what every copy of the disks must hold.
 *
 *   WITNESS READY epoch=E seed=S disks=vda,sda depth=K     writing begins (also after each reset)
 *   ACK dev n block microseconds                           record n is durable at that 4 KiB block; latency in guest time
 *   ERR dev n errno                                        record n failed, or the device could not be opened (n = 0)
 *   BAD dev n block                                        the block did not read back as the record n that was acknowledged
 *   WITNESS STOPPED                                        a power button came: nothing is written after this line
 *
 * Options come on the kernel's command line: witness.disks=vda,sda  witness.seed=N  witness.depth=K (writers per disk, each
 * with blocks of its own, so that the order of the records of one block is defined)  witness.blocks=N (first N blocks
 * only)  witness.rate=N (records a second and disk; 0: as fast as it goes)  witness.start_delay_ms=N  witness.ordered=1
 * (record n goes to the second disk, at the same block, only when the first has acknowledged it).
 *
 * With witness.bench=MS it writes no records. At each press of the power button each disk in turn bears each load for MS
 * milliseconds, and stays whole no longer:
 *
 *   LOAD dev name operations microseconds median p95       what it did in how long; latencies in microseconds
 *   LOADS DONE
 *
 * Each boot writes another sequence of blocks, which seed and epoch determine. The record's layout is read again by record.ts.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define RECORD_SIZE 4096
#define MAX_DISKS 8
#define MAX_DEPTH 64

/** One 4 KiB block on a disk, little endian. */
struct record {
	char magic[8];
	uint64_t epoch; /* microseconds since 1970 when this boot's witness began: tells the boots apart */
	uint64_t n;
	uint64_t block;
	uint64_t seed;
	char dev[16];
	uint32_t checksum; /* CRC-32 of the whole block with this field zero */
	uint32_t reserved;
	uint64_t pattern[(RECORD_SIZE - 64) / 8];
};
_Static_assert(sizeof(struct record) == RECORD_SIZE, "a record fills its block");

struct disk {
	char dev[16];
	int fd;
	uint64_t blocks;
	uint64_t *acknowledged; /* by block: the last record of this boot that must be there; 0 if unknown */
	atomic_ulong next;
};

struct writer {
	struct disk *disks; /* written one after the other: one disk, or all of them when ordered */
	unsigned disk_count;
	unsigned index;
};

static struct disk disks[MAX_DISKS];
static unsigned disk_count;
static uint64_t epoch, seed, depth, rate;
static atomic_bool stopping;
static char cmdline[4096];

static uint64_t micros(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void sleep_micros(uint64_t us)
{
	struct timespec time = { us / 1000000, us % 1000000 * 1000 };
	nanosleep(&time, NULL);
}

/** One line in one write: lines of several writers never mix. */
static void say(const char *format, ...)
{
	char line[160];
	va_list args;
	va_start(args, format);
	int length = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (write(STDOUT_FILENO, line, length) != length)
		sleep_micros(1000);
}

static const char *option(const char *name)
{
	static __thread char value[256];
	char key[64];
	snprintf(key, sizeof key, "witness.%s=", name);
	const char *found = strstr(cmdline, key);
	if (!found)
		return NULL;
	sscanf(found + strlen(key), "%255s", value);
	return value;
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *value = option(name);
	return value ? strtoull(value, NULL, 10) : otherwise;
}

/** splitmix64: the next of a sequence of pseudo-random numbers. */
static uint64_t random_next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static uint32_t crc_table[256];

static void make_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int bit = 0; bit < 8; bit++)
			c = c & 1 ? 0xedb88320 ^ (c >> 1) : c >> 1;
		crc_table[i] = c;
	}
}

static uint32_t crc32(const void *data, size_t length)
{
	const uint8_t *byte = data;
	uint32_t c = ~0u;
	while (length--)
		c = crc_table[(c ^ *byte++) & 0xff] ^ (c >> 8);
	return ~c;
}

static void fill(struct record *r, const struct disk *d, uint64_t n, uint64_t block)
{
	uint64_t state = seed ^ epoch ^ (n << 32) ^ block;
	memset(r, 0, sizeof *r);
	memcpy(r->magic, "WITNESS1", 8);
	r->epoch = epoch;
	r->n = n;
	r->block = block;
	r->seed = seed;
	memcpy(r->dev, d->dev, sizeof r->dev);
	for (unsigned i = 0; i < sizeof r->pattern / sizeof *r->pattern; i++)
		r->pattern[i] = random_next(&state);
	r->checksum = crc32(r, sizeof *r);
}

/** What was acknowledged must be what the guest reads, whichever copy answers. */
static void read_back(struct disk *d, uint64_t block, struct record *found, struct record *expected)
{
	uint64_t n = d->acknowledged[block];
	if (n == 0)
		return;
	if (pread(d->fd, found, RECORD_SIZE, block * RECORD_SIZE) != RECORD_SIZE) {
		say("ERR %s %lu %d\n", d->dev, n, errno);
		return;
	}
	fill(expected, d, n, block);
	if (memcmp(found, expected, RECORD_SIZE) != 0)
		say("BAD %s %lu %lu\n", d->dev, n, block);
}

/** Whether the record is durable. */
static bool write_record(struct disk *d, uint64_t n, uint64_t block, struct record *buffers)
{
	read_back(d, block, &buffers[0], &buffers[1]);
	fill(&buffers[0], d, n, block);
	uint64_t began = micros(CLOCK_MONOTONIC);
	errno = 0;
	if (pwrite(d->fd, &buffers[0], RECORD_SIZE, block * RECORD_SIZE) != RECORD_SIZE || fdatasync(d->fd) != 0) {
		d->acknowledged[block] = 0;
		say("ERR %s %lu %d\n", d->dev, n, errno ? errno : EIO);
		sleep_micros(100000);
		return false;
	}
	d->acknowledged[block] = n;
	say("ACK %s %lu %lu %lu\n", d->dev, n, block, micros(CLOCK_MONOTONIC) - began);
	return true;
}

static void *write_records(void *argument)
{
	struct writer *w = argument;
	uint64_t state = seed ^ epoch ^ ((uint64_t)w->index << 56);
	uint64_t pause = rate ? depth * 1000000 / rate : 0;
	struct record *buffers = aligned_alloc(RECORD_SIZE, 2 * RECORD_SIZE);
	uint64_t range = w->disks[0].blocks;
	for (unsigned i = 1; i < w->disk_count; i++)
		if (w->disks[i].blocks < range)
			range = w->disks[i].blocks;

	while (!stopping) {
		uint64_t due = micros(CLOCK_MONOTONIC) + pause;
		uint64_t n = atomic_fetch_add(&w->disks[0].next, 1) + 1;
		uint64_t block = random_next(&state) % (range / depth) * depth + w->index;
		for (unsigned i = 0; i < w->disk_count && !stopping && write_record(&w->disks[i], n, block, buffers);)
			i++;
		for (uint64_t now; !stopping && (now = micros(CLOCK_MONOTONIC)) < due;)
			sleep_micros(due - now < 100000 ? due - now : 100000);
	}
	return NULL;
}

/** Opens a disk, waiting up to 10 s for it to appear: SCSI disks are found in the background. */
static bool open_disk(const char *dev, uint64_t limit)
{
	struct disk *d = &disks[disk_count];
	char path[32];
	uint64_t bytes;
	snprintf(path, sizeof path, "/dev/%s", dev);
	for (int tries = 0; (d->fd = open(path, O_RDWR | O_DIRECT)) < 0 && tries < 100; tries++)
		sleep_micros(100000);
	if (d->fd < 0 || ioctl(d->fd, BLKGETSIZE64, &bytes) != 0 || bytes / RECORD_SIZE <= depth) {
		say("ERR %s 0 %d\n", dev, errno);
		return false;
	}
	snprintf(d->dev, sizeof d->dev, "%s", dev);
	d->blocks = bytes / RECORD_SIZE;
	if (limit && limit < d->blocks)
		d->blocks = limit;
	d->acknowledged = calloc(d->blocks, sizeof *d->acknowledged);
	disk_count++;
	return true;
}

/** Returns when somebody presses the ACPI power button (virsh shutdown). */
static void wait_for_power_button(void)
{
	static struct pollfd inputs[8];
	static unsigned count;
	for (int i = count == 0 ? 0 : 8; i < 8; i++) {
		char path[32];
		snprintf(path, sizeof path, "/dev/input/event%d", i);
		int fd = open(path, O_RDONLY);
		if (fd >= 0)
			inputs[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
	}
	for (;;) {
		if (count == 0 || poll(inputs, count, -1) < 0)
			sleep_micros(1000000);
		for (unsigned i = 0; i < count; i++) {
			struct input_event event;
			if ((inputs[i].revents & POLLIN) && read(inputs[i].fd, &event, sizeof event) == sizeof event &&
			    event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
				return;
		}
	}
}

/** How a disk is written to when it is measured. */
struct load {
	const char *name;
	size_t size;
	unsigned depth;
	bool durable; /* fdatasync after each write */
	bool sequential;
};

static const struct load loads[] = {
	{ "4k-sync", 4096, 1, true, false },
	{ "4k-depth-32", 4096, 32, false, false },
	{ "1m-sequential", 1 << 20, 1, false, true },
};

#define MAX_LATENCIES 65536

struct bearing {
	struct disk *disk;
	const struct load *load;
	uint64_t until;
	atomic_ulong next;
	atomic_ulong count;
	uint32_t latencies[MAX_LATENCIES];
};

static void *bear_load(void *argument)
{
	struct bearing *b = argument;
	const struct load *load = b->load;
	uint64_t state = seed ^ micros(CLOCK_MONOTONIC) ^ (uint64_t)pthread_self();
	uint64_t slots = b->disk->blocks * RECORD_SIZE / load->size;
	uint64_t *data = aligned_alloc(RECORD_SIZE, load->size);
	for (size_t i = 0; i < load->size / sizeof *data; i++)
		data[i] = random_next(&state);
	for (uint64_t began; (began = micros(CLOCK_MONOTONIC)) < b->until;) {
		uint64_t slot = load->sequential ? atomic_fetch_add(&b->next, 1) : random_next(&state);
		if (pwrite(b->disk->fd, data, load->size, slot % slots * load->size) != (ssize_t)load->size ||
		    (load->durable && fdatasync(b->disk->fd) != 0))
			say("ERR %s 0 %d\n", b->disk->dev, errno);
		b->latencies[atomic_fetch_add(&b->count, 1) % MAX_LATENCIES] = micros(CLOCK_MONOTONIC) - began;
	}
	free(data);
	return NULL;
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static void measure(struct disk *d, const struct load *load, uint64_t ms)
{
	static struct bearing bearing;
	pthread_t threads[MAX_DEPTH];
	uint64_t began = micros(CLOCK_MONOTONIC);
	bearing = (struct bearing){ .disk = d, .load = load, .until = began + ms * 1000 };
	for (unsigned i = 0; i < load->depth; i++)
		pthread_create(&threads[i], NULL, bear_load, &bearing);
	for (unsigned i = 0; i < load->depth; i++)
		pthread_join(threads[i], NULL);
	uint64_t took = micros(CLOCK_MONOTONIC) - began;
	fdatasync(d->fd); /* what it left behind is not the next one's burden */
	size_t kept = bearing.count < MAX_LATENCIES ? bearing.count : MAX_LATENCIES;
	qsort(bearing.latencies, kept, sizeof *bearing.latencies, by_size);
	say("LOAD %s %s %lu %lu %u %u\n", d->dev, load->name, (uint64_t)bearing.count, took, bearing.latencies[kept / 2],
	    bearing.latencies[kept * 95 / 100]);
}

static void measure_at_each_press(uint64_t ms)
{
	for (;;) {
		wait_for_power_button();
		for (unsigned l = 0; l < sizeof loads / sizeof *loads; l++)
			for (unsigned d = 0; d < disk_count; d++)
				measure(&disks[d], &loads[l], ms);
		say("LOADS DONE\n");
	}
}

int main(void)
{
	static struct writer writers[MAX_DISKS * MAX_DEPTH];
	static pthread_t threads[MAX_DISKS * MAX_DEPTH];
	unsigned writer_count = 0;

	FILE *file = fopen("/proc/cmdline", "r");
	if (!file || !fgets(cmdline, sizeof cmdline, file))
		cmdline[0] = 0;
	make_crc_table();
	epoch = micros(CLOCK_REALTIME);
	seed = number("seed", 0);
	rate = number("rate", 0);
	depth = number("depth", 1);
	if (depth < 1 || depth > MAX_DEPTH)
		depth = 1;

	char names[256];
	const char *wanted = option("disks");
	snprintf(names, sizeof names, "%s", wanted ? wanted : "vda");
	for (char *rest, *dev = strtok_r(names, ",", &rest); dev && disk_count < MAX_DISKS; dev = strtok_r(NULL, ",", &rest))
		open_disk(dev, number("blocks", 0));

	/* The empty line ends whatever the last boot was writing when it was reset. */
	say("\nWITNESS READY epoch=%lu seed=%lu disks=%s depth=%lu\n", epoch, seed, wanted ? option("disks") : "vda", depth);
	/* Records of a boot of which nobody has seen that line would be taken for old ones. */
	tcdrain(STDOUT_FILENO);
	if (number("bench", 0))
		measure_at_each_press(number("bench", 0));
	sleep_micros(number("start_delay_ms", 0) * 1000);

	bool ordered = number("ordered", 0);
	unsigned groups = ordered && disk_count > 0 ? 1 : disk_count;
	for (unsigned g = 0; g < groups; g++)
		for (unsigned i = 0; i < depth; i++, writer_count++) {
			writers[writer_count] = (struct writer){ &disks[g], ordered ? disk_count : 1, i };
			pthread_create(&threads[writer_count], NULL, write_records, &writers[writer_count]);
		}

	wait_for_power_button();
	stopping = true;
	for (unsigned i = 0; i < writer_count; i++)
		pthread_join(threads[i], NULL);
	say("WITNESS STOPPED\n");
	sync();
	sleep_micros(50000); /* the console drains */
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

'use strict';
const { Spec, Base } = require('mocha').reporters;

/** mocha's spec report, with the line that continuous integration reads as its very last one. */
class SpecWithCount extends Spec {
  epilogue() {
    super.epilogue();
    const { passes, failures } = this.stats;
    Base.consoleLog(`${passes} passed, ${failures} failed`);
  }
}

module.exports = SpecWithCount;
